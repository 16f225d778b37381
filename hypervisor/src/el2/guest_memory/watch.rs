//! Stores that are reported or stopped.
//!
//! The table forbids writes in both cases; what a CPU does when it meets that is decided here. A store that is only
//! reported opens its page, which stays open until reports are next asked for: one report a page and round.

use crate::el2::base::{cpu, registers::read_register};
use crate::el2::guest_memory::{self, operations::protect, table_lock::TableLock};
use hypervisor::granule::PAGE;
use hypervisor::policy::{Policies, Policy};
use hypervisor::range::PhysRange;
use spin::Mutex;
use stage2::{Abort, Error, Ipa, IpaRange, Permissions};

/// Stores that are kept until someone asks.
const KEPT: usize = 512;

/// A store that met a policy.
#[derive(Clone, Copy)]
pub struct Store {
    pub ipa: u64,
    pub va: u64,
    pub pc: u64,
    pub vbar: u64,
    pub cpu: u64,
    pub denied: bool,
}

struct Watch {
    policies: Policies,
    stores: [Store; KEPT],
    /// The oldest store that is kept, and how many there are.
    first: usize,
    count: usize,
    /// Stores that there was no room for.
    lost: u64,
    /// Whether a report has opened a page since all were protected.
    opened: bool,
}

/// The lock is taken before the table's, never while that is held.
static WATCH: Mutex<Watch> = Mutex::new(Watch {
    policies: Policies::new(),
    stores: [Store { ipa: 0, va: 0, pc: 0, vbar: 0, cpu: 0, denied: false }; KEPT],
    first: 0,
    count: 0,
    lost: 0,
    opened: false,
});

impl Watch {
    fn keep(&mut self, store: Store) {
        let slot = (self.first + self.count) % KEPT;
        match self.stores.get_mut(slot) {
            Some(slot) if self.count < KEPT => {
                *slot = store;
                self.count += 1;
            }
            _ => self.lost += 1,
        }
    }

    fn take(&mut self) -> Option<Store> {
        let store = self.stores.get(self.first).copied().filter(|_| self.count > 0)?;
        self.first = (self.first + 1) % KEPT;
        self.count -= 1;
        Some(store)
    }
}

/// What came of a wish for a policy.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Set {
    /// It holds.
    Done,
    /// There are [`hypervisor::policy::MAX_RANGES`] ranges already; nothing is set.
    NoRoom,
    /// Stores cannot be denied while a device may make some; nothing is set.
    InFlight,
}

/// Sets what the guest may do to a range of its memory; `None`: anything. `in_flight` says whether a device may be writing to
/// the range: it is asked once the table grants no writes there, so that none begins behind its back.
///
/// # Errors
///
/// The engine's; nothing is set.
pub fn set(range: PhysRange, policy: Option<Policy>, in_flight: impl FnOnce() -> bool) -> Result<Set, Error> {
    let ipas = IpaRange::new(Ipa(range.start()), Ipa(range.end()))?;
    let permissions = if policy.is_some() { Permissions::READ_EXECUTE } else { Permissions::ALL };
    let mut watch = WATCH.lock();
    let before = watch.policies.clone();
    if watch.policies.set(range, policy).is_none() {
        return Ok(Set::NoRoom);
    }
    let Some(table) = guest_memory::table() else { return Ok(Set::Done) };
    if let Err(error) = protect(table, ipas, permissions) {
        watch.policies = before;
        return Err(error);
    }
    if policy.is_some() {
        // A CPU at EL2 may be writing a bitmap of the guest's there, by what the table granted before: it has left then.
        drop(table.write());
    }
    if policy != Some(Policy::Deny) || !in_flight() {
        return Ok(Set::Done);
    }
    watch.policies = before;
    for (piece, before) in watch.policies.pieces(range) {
        let ipas = IpaRange::new(Ipa(piece.start()), Ipa(piece.end()))?;
        // What was granted before, page by page: no more memory is needed for it. A page that a report has opened is protected
        // again: it is reported once more.
        let permissions = if before.is_some() { Permissions::READ_EXECUTE } else { Permissions::ALL };
        protect(table, ipas, permissions)?;
    }
    Ok(Set::InFlight)
}

/// Protects again what reports have opened.
///
/// # Errors
///
/// The engine's; what could not be protected is tried again the next time.
pub fn rearm() -> Result<(), Error> {
    let mut watch = WATCH.lock();
    if !watch.opened {
        return Ok(());
    }
    let Some(table) = guest_memory::table() else { return Ok(()) };
    for (range, _) in watch.policies.iter().filter(|(_, policy)| *policy == Policy::Report) {
        let range = IpaRange::new(Ipa(range.start()), Ipa(range.end()))?;
        protect(table, range, Permissions::READ_EXECUTE)?;
    }
    watch.opened = false;
    Ok(())
}

/// The oldest store that nobody has asked for yet.
pub fn take() -> Option<Store> {
    WATCH.lock().take()
}

/// How many stores were not kept since this was asked last.
pub fn take_lost() -> u64 {
    core::mem::take(&mut WATCH.lock().lost)
}

/// The table has denied the executing CPU an access. Whether the guest shall try again: its store was only to be
/// reported, or the policy has changed since.
#[cold]
pub fn lets_through(abort: &Abort) -> bool {
    if !abort.write {
        return false;
    }
    let Some(table) = guest_memory::table() else { return false };
    let mut watch = WATCH.lock();
    // What the table says by now, of which policies are changed under the lock only. A walk of stage 1 reads, too, and through a
    // device it is denied whatever the leaf allows.
    let leaf = table.read().walk(abort.ipa).map(|leaf| leaf.attributes);
    let reads = |leaf: Permissions| leaf.read || !abort.stage1_walk;
    let open = leaf.is_some_and(|leaf| leaf.permissions.write && reads(leaf.permissions) && !leaf.memory.is_device());
    match watch.policies.at(abort.ipa.0) {
        None => open,
        // Another CPU was here first, and has reported the page.
        Some(Policy::Report) if open => true,
        Some(policy) => watch.meet(table, policy, abort.ipa, abort.va),
    }
}

/// A device is to write `bytes` bytes from `start` on, which the table does not grant, since the instruction that the executing
/// CPU was trapped at asks for it. Whether it may: the pages were only to be reported, and are from now on open.
#[cold]
pub fn lets_device_through(start: Ipa, bytes: u64) -> bool {
    let Some(table) = guest_memory::table() else { return false };
    let mut watch = WATCH.lock();
    let mut page = start.align_down(PAGE);
    while page.0 < start.0 + bytes {
        let open = table.read().walk(page).is_some_and(|leaf| leaf.attributes.permissions.write);
        if !open {
            // A page without a policy is one that the guest has given up the right to.
            let Some(policy) = watch.policies.at(page.0) else { return false };
            if !watch.meet(table, policy, page.max(start), 0) {
                return false;
            }
        }
        page = page.offset(PAGE);
    }
    true
}

impl Watch {
    /// A store to `ipa` has met a policy. Whether it is let through.
    fn meet(&mut self, table: &TableLock, policy: Policy, ipa: Ipa, va: u64) -> bool {
        self.keep(Store {
            ipa: ipa.0,
            va,
            pc: read_register!("elr_el2"),
            vbar: read_register!("vbar_el1"),
            cpu: cpu::this_cpu().id.get().map_or(0, |id| id.affinity()),
            denied: policy == Policy::Deny,
        });
        if policy == Policy::Deny {
            return false;
        }
        self.opened = true;
        let start = ipa.align_down(PAGE);
        let opened = IpaRange::new(start, start.offset(PAGE)).and_then(|page| protect(table, page, Permissions::ALL));
        if let Err(error) = opened {
            // The guest must go on: its page cannot be opened alone, so the policy ends.
            log::error!(
                "a store at IPA {ipa} cannot be let through page by page ({error}): its range is no longer reported"
            );
            let range = self.policies.iter().find(|(range, _)| range.contains(ipa.0)).map(|(range, _)| range);
            if let Some(range) = range {
                let _ = self.policies.set(range, None);
                let ipas = IpaRange::new(Ipa(range.start()), Ipa(range.end()));
                // Both edges were split when the policy was set, so this needs no memory.
                let _ = ipas.and_then(|ipas| protect(table, ipas, Permissions::ALL));
            }
        }
        true
    }
}
