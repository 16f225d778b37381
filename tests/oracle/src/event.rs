//! What happens: everything the engine does to memory and to TLBs, and the operations that it is asked for.

use crate::shape::Shape;
use core::fmt;
use stage2::{Dsb, Ipa, IpaRange, Level, PhysAddr, Scope, Slot, Tlbi, Vmid, platform::range_tlbi_pages};

/// One thing that one PE did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its place in the order of all events, from 1.
    pub number: u64,
    /// The PE that did it.
    pub pe: u8,
    /// What it did.
    pub action: Action,
}

/// What a PE can do that matters to a TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Software loaded a descriptor.
    Load {
        /// Where.
        slot: Slot,
        /// What it got.
        value: u64,
    },
    /// Software stored a descriptor.
    Store {
        /// Where.
        slot: Slot,
        /// What.
        value: u64,
    },
    /// Software tried to replace `old` by `new`; it worked if `found` is `old`.
    CompareExchange {
        /// Where.
        slot: Slot,
        /// The value expected.
        old: u64,
        /// The new value.
        new: u64,
        /// What was there.
        found: u64,
    },
    /// Software wrote all 512 descriptors of a frame: `first`, `first + step`, …
    Fill {
        /// The frame: a table, or a part of one.
        table: PhysAddr,
        /// The first descriptor.
        first: u64,
        /// What is added from one to the next.
        step: u64,
    },
    /// Hardware set S2AP\[1\] in a descriptor with DBM (R_PQJJR).
    HardwareUpdate {
        /// Where.
        slot: Slot,
        /// The value now.
        value: u64,
    },
    /// A barrier.
    Dsb(Dsb),
    /// An instruction barrier.
    Isb,
    /// A TLB invalidation was issued.
    Tlbi(Invalidation),
    /// Frames were given to the engine.
    Allocate {
        /// The first frame.
        first: PhysAddr,
        /// How many.
        frames: usize,
    },
    /// Frames came back.
    Free {
        /// The first frame.
        first: PhysAddr,
        /// How many.
        frames: usize,
    },
    /// The walks of a VMID start at this root from now on (VTTBR_EL2 and VTCR_EL2).
    Attach {
        /// The VMID.
        vmid: u16,
        /// Bits of the IPA space.
        ipa_bits: u8,
        /// The first frame of the root.
        root: PhysAddr,
    },
    /// No PE walks the table of this VMID any more.
    Detach {
        /// The VMID.
        vmid: u16,
    },
    /// The guest maps a page of VA, in its own tables, to another page of IPA, and invalidates nothing.
    GuestMaps {
        /// The VMID.
        vmid: u16,
        /// The page of VA.
        va: u64,
        /// That of IPA; nothing is mapped there if there is none.
        ipa: Option<u64>,
    },
    /// The guest accesses memory, through the worst entry that the PE may hold.
    Access {
        /// The VMID.
        vmid: u16,
        /// The address.
        va: u64,
        /// How.
        access: Access,
    },
    /// The engine was called.
    Begin(Operation),
    /// The operation of this PE reports these pages dirty, or was asked for just these; a batch, for one change more.
    Pages {
        /// First address.
        start: u64,
        /// First address past the pages.
        end: u64,
    },
    /// The engine's call returned.
    Return {
        /// Whether without an error.
        ok: bool,
    },
}

/// How a guest uses an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Access {
    /// A load.
    Read = 0,
    /// A store.
    Write = 1,
    /// An instruction fetch at EL1.
    Execute = 2,
    /// An instruction fetch at EL0.
    ExecuteAtEl0 = 3,
}

impl Access {
    /// All of them, in the order of their codes.
    pub const ALL: [Access; 4] = [Access::Read, Access::Write, Access::Execute, Access::ExecuteAtEl0];
}

/// A TLB invalidation, with what the engine's own type leaves out so that it can't be got wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalidation {
    /// The VMID that it is for.
    pub vmid: u16,
    /// What it is for.
    pub form: Form,
    /// Which PEs.
    pub scope: Scope,
    /// The level that the leaf is said to be at (TTL).
    pub hint: Option<Level>,
    /// A last-level form, which leaves walk caches alone.
    pub last_level: bool,
}

/// The TLBI instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// `IPAS2E1`.
    Ipa(u64),
    /// `RIPAS2E1`.
    Range {
        /// BaseADDR, as an address.
        base: u64,
        /// SCALE.
        scale: u8,
        /// NUM.
        num: u8,
        /// log2 of the bytes that TG stands for.
        granule: u8,
        /// log2 of the bytes that BaseADDR was counted in.
        unit: u8,
    },
    /// `VAAE1`.
    Va(u64),
    /// `VMALLE1`.
    VmallE1,
    /// `VMALLS12E1`.
    VmallS12E1,
    /// An invalidation for another translation regime, `VAE2` and its like.
    OtherRegime,
}

impl Invalidation {
    /// The engine's invalidation.
    #[must_use]
    pub fn of(vmid: Vmid, tlbi: Tlbi) -> Self {
        let (form, scope) = match tlbi {
            Tlbi::Ipa { ipa, scope } => (Form::Ipa(ipa.0), scope),
            Tlbi::Range { base, scale, num, granule, unit } => {
                (Form::Range { base: base.0, scale, num, granule, unit }, Scope::Broadcast)
            }
            Tlbi::VaLocal { va } => (Form::Va(va), Scope::Local),
            Tlbi::VmallE1(scope) => (Form::VmallE1, scope),
            Tlbi::VmallS12E1(scope) => (Form::VmallS12E1, scope),
            _ => panic!("the oracle has no word for {tlbi:?} yet: its version must fit that of stage2"),
        };
        Self { vmid: vmid.get(), form, scope, hint: None, last_level: false }
    }

    /// The addresses that a stage-2 form covers.
    pub(crate) fn stage2_range(&self, shape: Shape) -> Option<core::ops::Range<u64>> {
        match self.form {
            Form::Ipa(ipa) => Some(crate::span::page(shape, Ipa(ipa))),
            Form::Range { base, scale, num, granule, unit } => {
                let base = shape.base(base, unit);
                Some(base..base + (range_tlbi_pages(scale & 3, num & 31) << granule))
            }
            _ => None,
        }
    }
}

/// What the engine is asked to do, as far as it matters to the judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Which operation.
    pub kind: OperationKind,
    /// The range it is for.
    pub range: Option<IpaRange>,
}

/// The engine's operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum OperationKind {
    /// Make a table.
    New = 1,
    /// Free a table.
    Release = 2,
    /// Map a range.
    Map = 3,
    /// Unmap a range.
    Unmap = 4,
    /// Change permissions.
    Protect = 5,
    /// Split leaves.
    Split = 6,
    /// Join leaves.
    Collapse = 7,
    /// Answer a stage-2 abort.
    Fault = 8,
    /// Several changes, one invalidation. What each is for is told by [`Action::Pages`] before it begins.
    Batch = 9,
    /// Start a dirty log: from its return on, every write is to be reported.
    Start = 10,
    /// Report the dirty pages and begin anew.
    Harvest = 11,
    /// Begin anew for the pages given by [`Action::Pages`].
    Clear = 12,
    /// End a dirty log.
    Stop = 13,
    /// Stop every walk.
    Freeze = 14,
    /// Let walks go on.
    Thaw = 15,
    /// Anything that frees no table and stores to no entry that others may change.
    Other = 16,
    /// End a dirty log and leave the table as it is.
    End = 17,
}

impl OperationKind {
    pub(crate) const ALL: [OperationKind; 17] = {
        use OperationKind::{
            Batch, Clear, Collapse, End, Fault, Freeze, Harvest, Map, New, Other, Protect, Release, Split, Start, Stop,
            Thaw, Unmap,
        };
        [
            New, Release, Map, Unmap, Protect, Split, Collapse, Fault, Batch, Start, Harvest, Clear, Stop, Freeze,
            Thaw, Other, End,
        ]
    };

    /// Whether the engine is borrowed exclusively, so that plain stores are in order.
    pub(crate) const fn is_exclusive(self) -> bool {
        use OperationKind::{Collapse, End, Freeze, Map, New, Release, Start, Stop, Thaw, Unmap};
        matches!(self, End | New | Release | Map | Unmap | Collapse | Start | Stop | Freeze | Thaw)
    }
}

impl Operation {
    /// `kind` over `range`.
    #[must_use]
    pub const fn over(kind: OperationKind, range: IpaRange) -> Self {
        Self { kind, range: Some(range) }
    }

    /// `kind`, for the whole table or none of it.
    #[must_use]
    pub const fn whole(kind: OperationKind) -> Self {
        Self { kind, range: None }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "{:?} {range}", self.kind),
            None => write!(f, "{:?}", self.kind),
        }
    }
}

impl fmt::Display for Invalidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vmid, form, scope, hint, last_level } = *self;
        let is = if scope == Scope::Broadcast { "IS" } else { "" };
        let last = if last_level { "L" } else { "" };
        match form {
            Form::Ipa(ipa) => write!(f, "TLBI IPAS2{last}E1{is} {ipa:#x}")?,
            Form::Range { base, scale, num, granule, .. } => {
                let end = base.wrapping_add(range_tlbi_pages(scale & 3, num & 31) << granule);
                write!(f, "TLBI RIPAS2{last}E1{is} {base:#x}-{end:#x} (scale {scale}, num {num})")?;
            }
            Form::Va(va) => write!(f, "TLBI VAAE1{is} {va:#x}")?,
            Form::VmallE1 => write!(f, "TLBI VMALLE1{is}")?,
            Form::VmallS12E1 => write!(f, "TLBI VMALLS12E1{is}")?,
            Form::OtherRegime => write!(f, "TLBI of another regime")?,
        }
        if let Some(level) = hint {
            write!(f, " level {}", level as u8)?;
        }
        write!(f, " VMID {vmid}")
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} PE{} ", self.number, self.pe)?;
        let at = |slot: Slot| format!("[{:#x} #{}]", slot.table.0, slot.index);
        match self.action {
            Action::Load { slot, value } => write!(f, "load  {} is {value:#x}", at(slot)),
            Action::Store { slot, value } => write!(f, "store {} = {value:#x}", at(slot)),
            Action::CompareExchange { slot, old, new, found } if found == old => {
                write!(f, "cas   {} {old:#x} -> {new:#x}", at(slot))
            }
            Action::CompareExchange { slot, old, found, .. } => {
                write!(f, "cas   {} failed: {found:#x}, not {old:#x}", at(slot))
            }
            Action::Fill { table, first, step } => write!(f, "fill  [{:#x}] = {first:#x} + n * {step:#x}", table.0),
            Action::HardwareUpdate { slot, value } => write!(f, "hardware marks {} dirty = {value:#x}", at(slot)),
            Action::Dsb(Dsb::IshSt) => write!(f, "DSB ISHST"),
            Action::Dsb(Dsb::Ish) => write!(f, "DSB ISH"),
            Action::Dsb(Dsb::Nsh) => write!(f, "DSB NSH"),
            Action::Isb => write!(f, "ISB"),
            Action::Tlbi(invalidation) => write!(f, "{invalidation}"),
            Action::Allocate { first, frames } => write!(f, "allocate {:#x}, {frames} frame(s)", first.0),
            Action::Free { first, frames } => write!(f, "free {:#x}, {frames} frame(s)", first.0),
            Action::Attach { vmid, ipa_bits, root } => {
                write!(f, "VMID {vmid} walks from {:#x}, {ipa_bits} bits of IPA", root.0)
            }
            Action::Detach { vmid } => write!(f, "VMID {vmid} walks nothing"),
            Action::GuestMaps { vmid, va, ipa: Some(ipa) } => write!(f, "guest {vmid} maps VA {va:#x} to {ipa:#x}"),
            Action::GuestMaps { vmid, va, ipa: None } => write!(f, "guest {vmid} maps VA {va:#x} to nothing"),
            Action::Access { vmid, va, access } => write!(f, "guest {vmid}: {access:?} at VA {va:#x}"),
            Action::Begin(operation) => write!(f, "{operation} begins"),
            Action::Pages { start, end } => write!(f, "pages {start:#x}-{end:#x}"),
            Action::Return { ok: true } => write!(f, "returns"),
            Action::Return { ok: false } => write!(f, "returns an error"),
        }
    }
}
