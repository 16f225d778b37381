//! The way of a stage-2 abort to the engine, and its answer.

use crate::el2::base::cpu;
use crate::el2::guest_memory::{events, guest_memory, noted_memory};
use hypervisor::granule::PAGE;
use hypervisor_abi::events::Call;
use stage2::{Ipa, IpaRange, Outcome, Taken};

/// The page that an abort is about, for the log of events.
#[inline(always)]
fn page_of(ipa: Ipa) -> Option<IpaRange> {
    IpaRange::from_size(ipa.align_down(PAGE), PAGE).ok()
}

/// Lets the first store to a tracked page through, and says whether the store at `va` to the page `ipa` was that. Waits for
/// nothing, and calls nothing: what may have to is left to [`answer`].
#[inline(always)]
pub fn first_write(ipa: Ipa, va: u64) -> bool {
    let Some(memory) = noted_memory() else { return false };
    events::make_room();
    let Some(table) = memory.table.try_read() else { return false };
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    events::begin(Call::Fault, page_of(ipa));
    let done = table.first_write(ipa, va, history);
    events::end(true);
    done
}

/// [`first_write`] to a page that is still part of a block.
#[inline(always)]
pub fn first_write_to_block(ipa: Ipa, va: u64) -> bool {
    let Some(memory) = noted_memory() else { return false };
    events::make_room();
    let Some(table) = memory.table.try_read() else { return false };
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    events::operation(Call::Fault, page_of(ipa), || table.first_write_to_block(ipa, va, history), |_| true)
}

/// The engine's answer to a stage-2 abort of the executing CPU.
pub fn answer(taken: &Taken) -> Outcome {
    let Some(memory) = guest_memory() else { return Outcome::Unmapped };
    events::make_room();
    let page = match taken {
        Taken::Abort(abort) => page_of(abort.ipa),
        Taken::Untranslated { .. } => None,
    };
    let table = memory.table.read();
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    let outcome = events::operation(Call::Fault, page, || table.answer(taken, history), |_| true);
    drop(table);
    if outcome == Outcome::Stuck {
        stuck(taken);
    }
    outcome
}

#[cold]
fn stuck(taken: &Taken) {
    match taken {
        Taken::Abort(abort) => {
            log::error!("stage 2: {abort:?} comes back although the tables allow it; the guest gets an external abort")
        }
        Taken::Untranslated { va, why } => {
            log::debug!("guest: {va:#x} has no translation, again and again ({why:?}); it gets an external abort")
        }
    }
}
