//! What is guarded of the GIC: the first page of each GICv3 redistributor.
//!
//! Everything else that is mapped has no way to memory. The ITSs, the frames for virtual LPIs, GICH and GICV are not
//! mapped at all.

use crate::el2::device;
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
        let typer = unsafe { core::ptr::read_volatile((next + 8) as *const u64) };
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

/// Carries out a load from a guarded page; nothing if that ends with an external abort.
pub fn read(ipa: Ipa, bytes: u8) -> Option<u64> {
    match redistributor::read(ipa.0 % PAGE, bytes) {
        // SAFETY: `ipa` lies in a redistributor's first page, at a register of this size; loads have no side effect.
        Answer::Masked(mask) => Some(mask & unsafe { device::load(ipa.0, bytes == 8) }?),
        Answer::Nothing => Some(0),
    }
}

/// Carries out a store to a guarded page; nothing if that ends with a synchronous external abort.
pub fn write(ipa: Ipa, bytes: u8, value: u64) -> Option<()> {
    match redistributor::write(ipa.0 % PAGE, bytes) {
        // SAFETY: `ipa` lies in a redistributor's first page, at a 4-byte register that cannot make it write to memory
        // with the bits that the mask leaves.
        Answer::Masked(mask) => unsafe { device::store(ipa.0, (value & mask) as u32) },
        Answer::Nothing => Some(()),
    }
}
