//! A platform with one mistake: what the engine does goes to the model, but for one thing that is left out, done twice or
//! done in the wrong order. It shows that the oracle (and a test that uses it) would notice.

use crate::event::{Action, Form, Invalidation};
use crate::model::Model;
use core::cell::{Cell, RefCell};
use stage2::descriptor::bits;
use stage2::{Counters, Dsb, Level, Maintenance, PhysAddr, Scope, Slot, TableMemory, Tlbi, Vmid};

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Nothing.
    None,
    /// No TLBI for stage-2 entries.
    NoStage2Tlbi,
    /// No `VMALLE1IS`.
    NoCombinedTlbi,
    /// The TLBI of another regime in the place of stage 2's.
    OtherRegime,
    /// The TLBI for another VMID.
    OtherVmid,
    /// Local TLBIs in the place of broadcast ones.
    Local,
    /// Range and page TLBIs that cover half of what they should, or the page before.
    HalfRange,
    /// Range TLBIs whose base is not aligned to the granule.
    UnalignedRange,
    /// Range TLBIs whose TG is another granule's.
    OtherGranule,
    /// A level hint that says page.
    PageHint,
    /// Last-level forms.
    LastLevel,
    /// No `DSB ISHST`.
    NoStoreBarrier,
    /// `DSB ISHST` after the TLBI that it should come before.
    BarrierAfterTlbi,
    /// No `DSB ISH`.
    NoCompletion,
    /// DSBs complete early: the model's, by [`crate::Setup::early_dsb`], not this platform's. The engine survives it where
    /// [`stage2::Errata::repeat_tlbi`] tells it of that, and nowhere else.
    EarlyCompletion,
    /// A table is filled after it was published.
    FillAfterPublish,
    /// Fourteen entries of a table are left as they were in the frame.
    ShortFill,
    /// Frames are freed before the invalidation that comes before that.
    FreeEarly,
    /// Table frames are never freed.
    Leak,
    /// Table frames are freed twice.
    DoubleFree,
    /// Compare-exchanges in two steps.
    PlainStore,
    /// Entries are not broken before they are made anew.
    NoBreak,
    /// A new output address or memory type is stored over the old one.
    NoUnmap,
    /// The nT bit is not set.
    NoNt,
    /// With FEAT_LPA2, leaves have SH where they have it without: in the place of an address's bits.
    Shareability,
    /// With 52-bit addresses, bits 51:48 are left out of descriptors.
    HighBits,
    /// With FEAT_LPA2, BaseADDR of range TLBIs counts in pages.
    BaseInPages,
}

impl Mutation {
    /// Those that are one with 52-bit addresses only.
    pub const OF_52_BITS: [Mutation; 3] = [Mutation::Shareability, Mutation::HighBits, Mutation::BaseInPages];

    /// All others but [`Mutation::None`].
    pub const ALL: [Mutation; 23] = {
        use Mutation::{
            BarrierAfterTlbi, DoubleFree, EarlyCompletion, FillAfterPublish, FreeEarly, HalfRange, LastLevel, Leak,
            Local, NoBreak, NoCombinedTlbi, NoCompletion, NoNt, NoStage2Tlbi, NoStoreBarrier, NoUnmap, OtherGranule,
            OtherRegime, OtherVmid, PageHint, PlainStore, ShortFill, UnalignedRange,
        };
        [
            NoStage2Tlbi,
            NoCombinedTlbi,
            OtherRegime,
            OtherVmid,
            Local,
            HalfRange,
            UnalignedRange,
            OtherGranule,
            PageHint,
            LastLevel,
            NoStoreBarrier,
            BarrierAfterTlbi,
            NoCompletion,
            EarlyCompletion,
            FillAfterPublish,
            ShortFill,
            FreeEarly,
            Leak,
            DoubleFree,
            PlainStore,
            NoBreak,
            NoUnmap,
            NoNt,
        ]
    };
}

/// A [`Model`] behind a mistake.
#[derive(Debug)]
pub struct Mutant<'m> {
    model: &'m Model,
    mutation: Mutation,
    /// Nothing goes wrong before the mistake is armed.
    armed: Cell<bool>,
    /// Actions that are put off until another one.
    held: RefCell<Vec<Action>>,
}

impl<'m> Mutant<'m> {
    /// A platform that makes one mistake once it is armed.
    #[must_use]
    pub fn new(model: &'m Model, mutation: Mutation) -> Self {
        Self { model, mutation, armed: Cell::new(false), held: RefCell::default() }
    }

    /// From here on the mistake is made.
    pub fn arm(&self) {
        self.armed.set(true);
    }

    fn makes(&self, mutation: Mutation) -> bool {
        self.armed.get() && self.mutation == mutation
    }

    fn act(&self, action: Action) {
        self.model.apply(self.model.pe(), action);
    }

    /// A descriptor as the mistake makes it.
    fn descriptor(&self, value: u64) -> u64 {
        let shape = self.model.setup().granule;
        let (valid, leaf) = (value & bits::VALID != 0, value & bits::ACCESS != 0);
        if valid && leaf && self.makes(Mutation::Shareability) {
            value | bits::SHAREABILITY
        } else if valid && self.makes(Mutation::HighBits) {
            value & !shape.high_mask()
        } else {
            value
        }
    }

    /// Does what was put off.
    fn release(&self) {
        for action in self.held.take() {
            self.act(action);
        }
    }
}

// SAFETY: as for `&Model`; what goes wrong concerns the model's TLBs, and no memory of this process.
unsafe impl TableMemory for Mutant<'_> {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        self.model.allocate(frames)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        if self.makes(Mutation::Leak) {
            return;
        }
        self.act(Action::Free { first, frames });
        self.release();
        if self.makes(Mutation::DoubleFree) {
            self.act(Action::Free { first, frames });
        }
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        self.model.read(slot)
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        let old = self.model.descriptor(slot);
        let breaks = old & bits::VALID != 0 && value & bits::VALID == 0;
        if self.makes(Mutation::NoBreak) && breaks && value & bits::BUSY != 0 || self.makes(Mutation::NoUnmap) && breaks
        {
            return;
        }
        let value = if self.makes(Mutation::NoNt) && value & 3 == 1 { value & !bits::NT } else { value };
        self.act(Action::Store { slot, value: self.descriptor(value) });
        if self.makes(Mutation::FillAfterPublish) {
            self.release();
        }
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        let found = self.model.read(slot);
        if self.makes(Mutation::NoBreak) && found == old && new & bits::VALID == 0 && new & bits::BUSY != 0 {
            return Ok(());
        }
        let nt = new & 3 == 1 && self.makes(Mutation::NoNt);
        let new = self.descriptor(if nt { new & !bits::NT } else { new });
        if self.makes(Mutation::PlainStore) && found == old {
            self.act(Action::Store { slot, value: new });
            return Ok(());
        }
        let result = self.model.exchange(slot, old, new);
        if self.makes(Mutation::FillAfterPublish) {
            self.release();
        }
        result
    }

    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        let fill = Action::Fill { table, first: self.descriptor(first), step };
        if self.makes(Mutation::FillAfterPublish) {
            self.held.borrow_mut().push(fill);
        } else if self.makes(Mutation::ShortFill) {
            let slot = self.model.setup().granule.slot(Slot { table, index: 0 });
            for index in 0..498 {
                let value = first.wrapping_add(step.wrapping_mul(index as u64));
                self.act(Action::Store { slot: Slot { index: slot.index + index, ..slot }, value });
            }
        } else {
            self.act(fill);
        }
    }
}

// SAFETY: as for `&Model`; see above.
unsafe impl Maintenance for Mutant<'_> {
    fn dsb(&self, barrier: Dsb) {
        let action = Action::Dsb(barrier);
        let skipped = self.makes(Mutation::NoStoreBarrier) && barrier == Dsb::IshSt
            || self.makes(Mutation::NoCompletion) && barrier == Dsb::Ish;
        let late = self.makes(Mutation::BarrierAfterTlbi) && barrier == Dsb::IshSt || self.makes(Mutation::FreeEarly);
        if late {
            self.held.borrow_mut().push(action);
        } else if !skipped {
            self.act(action);
        }
    }

    fn isb(&self) {
        self.act(Action::Isb);
    }

    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        let mut invalidation = Invalidation::of(vmid, tlbi);
        let stage2 = matches!(invalidation.form, Form::Ipa(_) | Form::Range { .. } | Form::VmallS12E1);
        if self.makes(Mutation::NoStage2Tlbi) && stage2
            || self.makes(Mutation::NoCombinedTlbi) && invalidation.form == Form::VmallE1
        {
            return;
        }
        match (self.mutation, invalidation.form) {
            _ if !self.armed.get() => {}
            (Mutation::OtherRegime, _) if stage2 => invalidation.form = Form::OtherRegime,
            (Mutation::OtherVmid, _) => invalidation.vmid ^= 1,
            (Mutation::Local, _) => invalidation.scope = Scope::Local,
            (Mutation::HalfRange, Form::Range { base, scale, num, granule, unit }) => {
                let (scale, num) = if num > 0 { (scale, num / 2) } else { (scale.saturating_sub(1), 0) };
                invalidation.form = Form::Range { base, scale, num, granule, unit };
            }
            (Mutation::HalfRange, Form::Ipa(ipa)) => {
                invalidation.form = Form::Ipa(ipa ^ self.model.setup().granule.bytes())
            }
            (Mutation::UnalignedRange, Form::Range { base, scale, num, granule, unit }) => {
                invalidation.form = Form::Range { base: base + 0x40, scale, num, granule, unit };
            }
            (Mutation::OtherGranule, Form::Range { base, scale, num, granule, unit }) => {
                let granule = if granule == 12 { 14 } else { 12 };
                invalidation.form = Form::Range { base, scale, num, granule, unit };
            }
            (Mutation::BaseInPages, Form::Range { base, scale, num, granule, .. }) => {
                invalidation.form = Form::Range { base, scale, num, granule, unit: granule };
            }
            (Mutation::PageHint, _) if stage2 => invalidation.hint = Some(Level::L3),
            (Mutation::LastLevel, _) if stage2 => invalidation.last_level = true,
            _ => {}
        }
        let action = Action::Tlbi(invalidation);
        if self.makes(Mutation::FreeEarly) {
            self.held.borrow_mut().push(action);
            return;
        }
        self.act(action);
        if self.makes(Mutation::BarrierAfterTlbi) {
            self.release();
        }
    }

    fn counters(&self) -> &Counters {
        self.model.counters_here()
    }
}
