//! What is done to the guest's table while the guest runs: each call of the engine with its lock, in pieces.

use crate::el2::guest_memory::events;
use crate::el2::guest_memory::table_lock::TableLock;
use hypervisor::granule::{FRAMES, Granule};
use hypervisor_abi::events::Call;
use stage2::{Error, Ipa, IpaRange, LeafSize, Permissions};

/// What is done at once while the guest's faults wait for it, or the lock is held at all.
const PIECE: u64 = 32 << 20;

/// Cuts a range into pieces that end at multiples of `bytes`, a power of two.
fn pieces(range: IpaRange, bytes: u64) -> impl Iterator<Item = IpaRange> {
    let mut start = range.start();
    core::iter::from_fn(move || {
        let end = start.align_down(bytes).offset(bytes).min(range.end());
        let piece = IpaRange::new(start, end).ok()?;
        start = end;
        Some(piece)
    })
}

/// Splits a range while the guest uses it.
pub fn split(table: &TableLock, range: IpaRange, to: LeafSize) -> Result<(), Error> {
    let split = |piece| {
        let table = table.read();
        events::fallible(Call::Split, Some(piece), || table.split(piece, to))
    };
    pieces(range, PIECE).try_for_each(split)
}

/// Changes what the guest may do to a range.
///
/// # Errors
///
/// The engine's.
pub fn protect(table: &TableLock, range: IpaRange, permissions: Permissions) -> Result<(), Error> {
    let table = table.read();
    events::fallible(Call::Protect, Some(range), || table.protect(range, permissions))
}

/// Stops every walk, or says why not.
///
/// # Errors
///
/// The engine's.
pub fn freeze(table: &TableLock) -> Result<(), Error> {
    let mut table = table.write();
    events::fallible(Call::Freeze, None, || table.freeze())
}

/// Lets walks go on.
pub fn thaw(table: &TableLock) {
    let mut table = table.write();
    events::operation(Call::Thaw, None, || table.thaw(), |()| true);
}

/// Makes the leaves of a range as large as they can be, at once.
///
/// # Errors
///
/// The engine's.
pub fn collapse_piece(table: &TableLock, range: IpaRange) -> Result<(), Error> {
    let mut table = table.write();
    events::fallible(Call::Collapse, Some(range), || table.collapse(range))
}

/// Makes the leaves of all ranges as large as they can be, in pieces, from small to large.
pub fn collapse<'r>(table: &TableLock, ranges: impl Iterator<Item = &'r IpaRange>) -> Result<(), Error> {
    const LARGEST: LeafSize = if FRAMES == 1 { LeafSize::Block1G } else { LeafSize::Contiguous32M };
    let largest = LARGEST.bytes_of::<Granule>();
    for range in ranges {
        let end = Ipa(range.end().0.next_multiple_of(largest));
        let end = end.min(table.read().geometry().range().end());
        let whole = IpaRange::new(range.start().align_down(largest), end)?;
        for large in pieces(whole, largest) {
            let small = pieces(large, PIECE).filter(|piece| piece.intersection(*range).is_some()).chain([large]);
            small.into_iter().try_for_each(|piece| collapse_piece(table, piece))?;
        }
    }
    Ok(())
}
