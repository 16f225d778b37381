//! What happened: one counter an event.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident => $key:literal,)*) => {
        /// Something that the engine counts.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(usize)]
        #[non_exhaustive]
        pub enum Event {
            $($(#[$doc])* $name,)*
        }

        impl Event {
            /// All events, in the order of their counters.
            pub const ALL: &[Event] = &[$(Event::$name,)*];

            /// The event's name in logs and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Event::$name => $key,)*
                }
            }
        }
    };
}

events! {
    /// A level-1 block (or one of level 0, with FEAT_LPA2) became a table.
    Split1G => "split-1g",
    /// A level-2 block became a table.
    Split2M => "split-2m",
    /// A contiguous run lost its Contiguous bits.
    SplitRun => "split-run",
    /// A level-2 table became a 1 GiB block, or one of level 1 one of 512 GiB.
    Collapse1G => "collapse-1g",
    /// A level-3 table became a 2 MiB block.
    Collapse2M => "collapse-2m",
    /// Sixteen entries became a contiguous run.
    CollapseRun => "collapse-run",
    /// A descriptor that the hardware could walk was written.
    DescriptorWrite => "descriptor-writes",
    /// A compare-exchange found another value and was tried again.
    CasRetry => "cas-retries",
    /// A mapped address was invalid for a time (break-before-make).
    InvalidWindow => "invalid-windows",
    /// A hardware-tracked block was read-only for a time while it was split (R_RTBRL).
    ReadOnlyWindow => "read-only-windows",
    /// An entry that another PE was changing was waited for.
    BusyWait => "busy-waits",
    /// TLBI IPAS2E1IS.
    TlbiIpaBroadcast => "tlbi-ipas2e1is",
    /// TLBI IPAS2E1.
    TlbiIpaLocal => "tlbi-ipas2e1",
    /// TLBI RIPAS2E1IS.
    TlbiRangeBroadcast => "tlbi-ripas2e1is",
    /// TLBI VMALLE1IS.
    TlbiVmallE1Broadcast => "tlbi-vmalle1is",
    /// TLBI VMALLE1.
    TlbiVmallE1Local => "tlbi-vmalle1",
    /// TLBI VMALLS12E1IS.
    TlbiVmallS12E1Broadcast => "tlbi-vmalls12e1is",
    /// TLBI VMALLS12E1.
    TlbiVmallS12E1Local => "tlbi-vmalls12e1",
    /// TLBI VAAE1.
    TlbiVaLocal => "tlbi-vaae1",
    /// DSB ISHST.
    DsbIshst => "dsb-ishst",
    /// DSB ISH.
    DsbIsh => "dsb-ish",
    /// DSB NSH.
    DsbNsh => "dsb-nsh",
    /// ISB.
    Isb => "isb",
    /// No memory for a split: a whole leaf was reported dirty and made writable.
    PrecisionLost => "precision-lost",
    /// A table frame was allocated.
    FrameAllocated => "frames-allocated",
    /// A table frame was freed.
    FrameFreed => "frames-freed",
    /// A stage-2 translation fault.
    FaultTranslation => "fault-translation",
    /// A stage-2 permission fault.
    FaultPermission => "fault-permission",
    /// A stage-2 access flag fault.
    FaultAccessFlag => "fault-access-flag",
    /// A TLB conflict abort.
    FaultConflict => "fault-tlb-conflict",
    /// A fault for an access that the tables allow: a stale TLB entry, or an alias.
    FaultSpurious => "fault-spurious",
    /// A permission fault whose address could not be translated (`AT S1E1R`): the guest has changed its own tables
    /// since.
    FaultNoTranslation => "fault-no-translation",
    /// A spurious fault that came back and was answered with VMALLE1.
    EscalateVmallE1 => "escalate-vmalle1",
    /// A spurious fault that came back again and was answered with VMALLS12E1.
    EscalateVmallS12E1 => "escalate-vmalls12e1",
    /// A first store to a page in a log, answered by [`Stage2::first_write`](crate::Stage2::first_write).
    FirstWrite => "first-writes",
}

/// Events that always come together, counted once for all: what a broadcast invalidation takes beside its stage-2
/// TLBIs.
const BROADCAST: [(Event, u64); 4] =
    [(Event::DsbIshst, 1), (Event::DsbIsh, 2), (Event::TlbiVmallE1Broadcast, 1), (Event::Isb, 1)];

/// Likewise the broadcast invalidation of one page, with its TLBI.
const PAGE_BROADCAST: [(Event, u64); 5] = [
    (Event::TlbiIpaBroadcast, 1),
    (Event::DsbIshst, 1),
    (Event::DsbIsh, 2),
    (Event::TlbiVmallE1Broadcast, 1),
    (Event::Isb, 1),
];

/// Likewise a first write to a logged page.
const FIRST_WRITE: [(Event, u64); 7] = [
    (Event::FirstWrite, 1),
    (Event::FaultPermission, 1),
    (Event::DescriptorWrite, 1),
    (Event::DsbIshst, 1),
    (Event::TlbiIpaLocal, 1),
    (Event::DsbNsh, 2),
    (Event::TlbiVaLocal, 1),
];

/// How often each [`Event`] happened on one PE.
///
/// An increment is a plain load and store, so that counting costs next to nothing: a `Counters` has one writer at a
/// time. The platform gives each PE (or host thread) one of its own; the caller that reports takes the sums.
#[derive(Debug)]
pub struct Counters {
    events: [AtomicU64; Event::ALL.len()],
    /// [`FIRST_WRITE`], all of it.
    first_writes: AtomicU64,
    /// [`BROADCAST`], all of it.
    broadcasts: AtomicU64,
    /// [`PAGE_BROADCAST`], all of it.
    page_broadcasts: AtomicU64,
}

/// How often `event` is part of what is counted together.
fn times(together: &[(Event, u64)], event: Event) -> u64 {
    together.iter().find(|(part, _)| *part == event).map_or(0, |(_, times)| *times)
}

impl Counters {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            events: [const { AtomicU64::new(0) }; Event::ALL.len()],
            first_writes: AtomicU64::new(0),
            broadcasts: AtomicU64::new(0),
            page_broadcasts: AtomicU64::new(0),
        }
    }

    /// Adds `n` to the event's counter. Only the PE that owns these counters may call it; a second writer loses counts.
    #[inline(always)]
    pub fn add(&self, event: Event, n: u64) {
        let cell = &self.events[event as usize];
        cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds a first write to a logged page: the fault, the descriptor, two local invalidations and their barriers. One
    /// increment instead of seven.
    #[inline(always)]
    pub(crate) fn add_first_write(&self) {
        self.first_writes.store(self.first_writes.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Adds a broadcast invalidation, without its stage-2 TLBIs: DSB ISHST, DSB, VMALLE1IS, DSB, ISB.
    #[inline(always)]
    pub(crate) fn add_broadcast(&self) {
        self.broadcasts.store(self.broadcasts.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Adds a broadcast invalidation of one page: DSB ISHST, IPAS2E1IS, DSB, VMALLE1IS, DSB, ISB.
    #[inline(always)]
    pub(crate) fn add_page_broadcast(&self) {
        self.page_broadcasts.store(self.page_broadcasts.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The event's count; any PE may ask.
    #[must_use]
    pub fn get(&self, event: Event) -> u64 {
        self.events[event as usize]
            .load(Relaxed)
            .wrapping_add(times(&FIRST_WRITE, event).wrapping_mul(self.first_writes.load(Relaxed)))
            .wrapping_add(times(&BROADCAST, event).wrapping_mul(self.broadcasts.load(Relaxed)))
            .wrapping_add(times(&PAGE_BROADCAST, event).wrapping_mul(self.page_broadcasts.load(Relaxed)))
    }

    /// All counts, in the order of [`Event::ALL`].
    #[must_use]
    pub fn snapshot(&self) -> [u64; Event::ALL.len()] {
        core::array::from_fn(|i| Event::ALL.get(i).map_or(0, |event| self.get(*event)))
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_counter_and_a_name_of_its_own() {
        let counters = Counters::new();
        for (i, &event) in Event::ALL.iter().enumerate() {
            assert_eq!(event as usize, i);
            counters.add(event, i as u64 + 1);
        }
        for (i, &event) in Event::ALL.iter().enumerate() {
            assert_eq!(counters.get(event), i as u64 + 1);
            assert_eq!(Event::ALL.iter().filter(|e| e.name() == event.name()).count(), 1);
        }
        assert_eq!(counters.snapshot().len(), Event::ALL.len());
    }

    #[test]
    fn what_is_counted_together_counts_as_all_of_its_parts() {
        let counters = Counters::new();
        counters.add(Event::DsbNsh, 5);
        counters.add_first_write();
        counters.add_first_write();
        counters.add_broadcast();
        counters.add_page_broadcast();
        for &event in Event::ALL {
            let expected = match event {
                Event::DsbNsh => 9,
                Event::DsbIsh | Event::DsbIshst => 4,
                Event::TlbiVmallE1Broadcast | Event::Isb => 2,
                Event::TlbiIpaBroadcast => 1,
                Event::FirstWrite | Event::FaultPermission | Event::DescriptorWrite => 2,
                Event::TlbiIpaLocal | Event::TlbiVaLocal => 2,
                _ => 0,
            };
            assert_eq!(counters.get(event), expected, "{}", event.name());
            assert_eq!(counters.snapshot()[event as usize], expected, "{}", event.name());
        }
    }
}
