//! What is guarded of the guest's registers: EL2 makes the guest's accesses to them, as far as [`GuestRegisters`] lets it.
//!
//! These are the first page of each GICv3 redistributor, and devices that share their page with something else. What is
//! mapped has no way to memory. The ITSs, the frames for virtual LPIs, GICH and GICV are neither mapped nor guarded.

use crate::el2::base::device;
use crate::el2::base::refusal::Refusal;
use alloc::vec::Vec;
use hypervisor::machine::{GuestRegisters, Machine};
use hypervisor::range::PhysRange;
use hypervisor::redistributor::Answer;
use spin::Once;
use stage2::Ipa;

static REGISTERS: Once<GuestRegisters> = Once::new();

/// Adds the redistributors to the guest's registers, and returns the pages that are to be mapped. What is guarded is so from
/// now on.
///
/// # Errors
///
/// A sentence: a redistributor that is not there, or that has something else in its pages.
pub fn guard(machine: &Machine, mut registers: GuestRegisters) -> Result<Vec<PhysRange>, Refusal> {
    // SAFETY: EL2 has mapped the regions of redistributors as device memory; loads of PIDR2 and TYPER have no side effect.
    registers.add_redistributors(machine, |address, bytes| unsafe { device::load(address, bytes) }.unwrap_or(0))?;
    for range in registers.forwarded() {
        log::info!("guest: the device at {range} does not have its page for itself: EL2 makes the accesses to it");
    }
    Ok(REGISTERS.call_once(|| registers).mapped())
}

/// Carries out a load from guarded registers; nothing if `ipa` is not guarded, or the device
/// answers with an external abort.
pub fn read(ipa: Ipa, bytes: u8) -> Option<u64> {
    Some(match REGISTERS.get()?.read(ipa.0, bytes)? {
        // SAFETY: `ipa` lies in guarded registers, which EL2 has mapped as device memory, and is aligned. The guest may have
        // any side effect that this load has: it would get the page, if nothing else were there.
        Answer::Masked(mask) => mask & unsafe { device::load(ipa.0, bytes) }?,
        Answer::Nothing => 0,
    })
}

/// Carries out a store to guarded registers; nothing if `ipa` is not guarded, or the device
/// answers with an external abort.
pub fn write(ipa: Ipa, bytes: u8, value: u64) -> Option<()> {
    match REGISTERS.get()?.write(ipa.0, bytes)? {
        // SAFETY: as in `read`; a redistributor's register cannot make it write to memory with the bits that the mask leaves.
        Answer::Masked(mask) => unsafe { device::store(ipa.0, bytes, value & mask) },
        Answer::Nothing => Some(()),
    }
}
