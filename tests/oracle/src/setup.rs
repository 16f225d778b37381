//! The machine to model, and what happened on it in numbers.

use crate::event::{Form, Invalidation};
use crate::shape::Shape;
use crate::verdict::Checks;
use stage2::{BbmLevel, Scope};

/// The machine to model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// The BBM level of the weakest PE.
    pub bbm: BbmLevel,
    /// The translation granule.
    pub granule: Shape,
    /// VTCR_EL2.HD: hardware marks descriptors with DBM at any moment.
    pub hardware_dirty: bool,
    /// PEs, 1 to 5. Two show whether a local invalidation was enough: all that run no engine are alike.
    pub pes: usize,
    /// Tables that there are frames for.
    pub frames: usize,
    /// Which verdicts are given.
    pub checks: Checks,
    /// Whether all events are kept, for [`crate::Model::recording`].
    pub record: bool,
    /// Whether a PE's plain stores come to memory no sooner than its next barrier or read-modify-write, and the last one
    /// first, so that software on other PEs sees them out of order.
    pub late_stores: bool,
    /// Whether a DSB completes broadcast invalidations before the accesses that used what they invalidate, as on the cores of
    /// [`stage2::Errata::repeat_tlbi`]: such accesses may still land until another TLBI and DSB of the same PE.
    pub early_dsb: bool,
    /// Chance that hardware marks a descriptor dirty right after the engine has read it, in 256ths.
    pub mark_rate: u8,
    /// Whether a PE that may hold entries of two sizes for one address takes a TLB conflict abort (levels 1 and 2) in
    /// [`crate::Model::guest_access`].
    pub conflicts: bool,
    /// Seed of the hardware's choices.
    pub seed: u64,
}

impl Setup {
    /// Two PEs of the given level, the 4 KiB granule, 4096 tables, every verdict.
    #[must_use]
    pub const fn new(bbm: BbmLevel) -> Self {
        Self {
            bbm,
            granule: Shape::PAGE_4K,
            hardware_dirty: false,
            pes: 2,
            frames: 4096,
            checks: Checks::ALL,
            record: false,
            late_stores: false,
            early_dsb: false,
            mark_rate: 0,
            conflicts: false,
            seed: 0,
        }
    }
}

/// What happened, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Changes of descriptors that a walk could read.
    pub descriptor_writes: u64,
    /// DSBs.
    pub barriers: u64,
    /// TLBIs for stage-2 entries.
    pub stage2_invalidations: u64,
    /// TLBIs for combined entries.
    pub combined_invalidations: u64,
    /// TLBIs for a whole VMID.
    pub full_invalidations: u64,
    /// TLBIs of these that are broadcast.
    pub broadcasts: u64,
    /// Breaks of an entry whose addresses stay mapped.
    pub invalid_windows: u64,
    /// Entries that had nT for a time.
    pub nt_windows: u64,
    /// Changes after which a PE may take a TLB conflict abort (levels 1 and 2).
    pub possible_conflicts: u64,
    /// Violations, those beyond the kept ones included.
    pub violations: u64,
}

impl Stats {
    pub(crate) fn count_tlbi(&mut self, invalidation: &Invalidation) {
        match invalidation.form {
            Form::Ipa(_) | Form::Range { .. } => self.stage2_invalidations += 1,
            Form::Va(_) | Form::VmallE1 => self.combined_invalidations += 1,
            Form::VmallS12E1 => self.full_invalidations += 1,
            Form::OtherRegime => {}
        }
        self.broadcasts += u64::from(invalidation.scope == Scope::Broadcast);
    }
}
