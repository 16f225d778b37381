//! What is guarded of the GIC: the first page of each GICv3 redistributor.
//!
//! Everything else that is mapped has no way to memory. The ITSs, the frames for virtual LPIs, GICH and GICV are not
//! mapped at all.

use alloc::vec::Vec;
use hypervisor::machine::{Gic, GicV3, Machine};
use hypervisor::range::PhysRange;
use hypervisor::redistributor::{self, Answer};
use spin::Once;
use stage2::Ipa;

const PAGE: u64 = 4096;
/// A redistributor's frame of registers (RD_base, SGI_base, VLPI_base).
const FRAME: u64 = 64 << 10;

/// First pages of redistributors, ascending.
static GUARDED: Once<Vec<u64>> = Once::new();

/// The registers that the guest gets, without the pages that are guarded. From now on those are.
pub fn guest_registers(machine: &Machine) -> Vec<PhysRange> {
    match &machine.gic {
        Gic::V2(gic) => Vec::from([gic.distributor, gic.cpu_interface]),
        Gic::V3(gic) => {
            let mut guarded = Vec::new();
            let mut given = Vec::from([gic.distributor]);
            for region in &gic.redistributors {
                for redistributor in redistributors(gic, *region) {
                    guarded.push(redistributor);
                    given.extend(PhysRange::new(redistributor + PAGE, redistributor + 2 * FRAME));
                }
            }
            guarded.sort_unstable();
            GUARDED.call_once(|| guarded);
            given
        }
    }
}

/// The first pages of the redistributors in a region.
fn redistributors(gic: &GicV3, region: PhysRange) -> Vec<u64> {
    let mut found = Vec::new();
    let mut next = region.start();
    while next + 2 * FRAME <= region.end() {
        // SAFETY: the region is mapped as device memory, and a redistributor is at `next`: the first one, or one that
        // follows one that is not the last.
        let typer = unsafe { load(next + 8, 8) };
        found.push(next);
        if redistributor::is_last(typer) {
            break;
        }
        let frames = if redistributor::has_virtual_lpis(typer) { 4 } else { 2 };
        next += gic.redistributor_stride.unwrap_or(frames * FRAME).max(2 * FRAME);
    }
    found
}

/// Whether EL2 answers for `ipa`.
pub fn is_guarded(ipa: Ipa) -> bool {
    let page = ipa.align_down(PAGE).0;
    GUARDED.get().is_some_and(|guarded| guarded.binary_search(&page).is_ok())
}

/// Carries out a load from a guarded page.
pub fn read(ipa: Ipa, bytes: u8) -> u64 {
    match redistributor::read(ipa.0 % PAGE, bytes) {
        // SAFETY: `ipa` lies in a redistributor's first page, at a register of this size; loads have no side effect.
        Answer::Masked(mask) => mask & unsafe { load(ipa.0, bytes) },
        Answer::Nothing => 0,
    }
}

/// Carries out a store to a guarded page.
pub fn write(ipa: Ipa, bytes: u8, value: u64) {
    if let Answer::Masked(mask) = redistributor::write(ipa.0 % PAGE, bytes) {
        // SAFETY: `ipa` lies in a redistributor's first page, at a 4-byte register that cannot make it write to memory
        // with the bits that the mask leaves.
        unsafe { core::ptr::write_volatile(ipa.0 as *mut u32, (value & mask) as u32) };
    }
}

/// Loads a 4- or 8-byte register.
///
/// # Safety
///
/// There is such a register at `address`, mapped as device memory.
unsafe fn load(address: u64, bytes: u8) -> u64 {
    if bytes == 8 {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::read_volatile(address as *const u64) }
    } else {
        // SAFETY: the caller's promise.
        u64::from(unsafe { core::ptr::read_volatile(address as *const u32) })
    }
}
