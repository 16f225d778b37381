//! Traces: events without an engine, written by hand, recorded from a run, or logged by a machine.

use crate::event::{Action, Event, Form, Invalidation, Operation, OperationKind};
use crate::model::Model;
use core::fmt;
use stage2::{Descriptor, Dsb, IpaRange, Level, PhysAddr, Scope, Slot};

/// Where a trace does not fit the model that it is replayed into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The event.
    pub event: Event,
    /// What the model has at the descriptor.
    pub found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the trace does not fit at event {}: the descriptor is {:#x}", self.event, self.found)
    }
}

impl core::error::Error for Mismatch {}

impl Model {
    /// Replays events in their order. The model judges them as if an engine had caused them.
    ///
    /// Of loads only the place is judged, not the value: nothing depends on it but the engine. A descriptor that hardware has marked dirty meanwhile
    /// (the trace can't know when) is marked in the model too.
    ///
    /// # Errors
    ///
    /// The first compare-exchange that found another value than the model has: events are missing, or out of order.
    pub fn replay(&self, events: &[Event]) -> Result<(), Mismatch> {
        for event in events {
            if let Action::CompareExchange { slot, found, .. } = event.action {
                let mut here = self.descriptor(slot);
                if here != found && self.setup().hardware_dirty {
                    self.apply(event.pe, Action::HardwareUpdate { slot, value: found });
                    here = self.descriptor(slot);
                }
                if here != found {
                    return Err(Mismatch { event: *event, found: here });
                }
            }
            self.apply(event.pe, event.action);
        }
        Ok(())
    }
}

/// Writes a trace by hand, with the words of an engine.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    events: Vec<Event>,
    pe: u8,
    vmid: u16,
}

impl Trace {
    /// An empty trace, on PE 0, with the invalidations for `vmid`.
    #[must_use]
    pub fn new(vmid: u16) -> Self {
        Self { events: Vec::new(), pe: 0, vmid }
    }

    /// The events.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// What follows is done by `pe`.
    pub fn on(&mut self, pe: u8) -> &mut Self {
        self.pe = pe;
        self
    }

    /// Any action.
    pub fn act(&mut self, action: Action) -> &mut Self {
        let number = self.events.len() as u64 + 1;
        self.events.push(Event { number, pe: self.pe, action });
        self
    }

    /// A new table's root: allocated, filled with nothing, ordered, walked.
    pub fn root(&mut self, root: PhysAddr, ipa_bits: u8) -> &mut Self {
        let vmid = self.vmid;
        self.allocate(root).fill(root, 0, 0).dsb(Dsb::IshSt);
        self.act(Action::Attach { vmid, ipa_bits, root })
    }

    /// One frame is allocated.
    pub fn allocate(&mut self, frame: PhysAddr) -> &mut Self {
        self.act(Action::Allocate { first: frame, frames: 1 })
    }

    /// One frame is freed.
    pub fn free(&mut self, frame: PhysAddr) -> &mut Self {
        self.act(Action::Free { first: frame, frames: 1 })
    }

    /// A table is filled.
    pub fn fill(&mut self, table: PhysAddr, first: u64, step: u64) -> &mut Self {
        self.act(Action::Fill { table, first, step })
    }

    /// A table is filled with leaves of `level` that map from `output` on.
    pub fn fill_leaves(&mut self, table: PhysAddr, level: Level, output: u64, attributes: u64) -> &mut Self {
        self.fill(table, Descriptor::leaf(level, PhysAddr(output), attributes).0, level.entry_bytes())
    }

    /// A descriptor is stored.
    pub fn store(&mut self, table: PhysAddr, index: usize, value: u64) -> &mut Self {
        self.act(Action::Store { slot: Slot { table, index }, value })
    }

    /// A table descriptor is stored.
    pub fn store_table(&mut self, table: PhysAddr, index: usize, child: PhysAddr) -> &mut Self {
        self.store(table, index, Descriptor::table(child).0)
    }

    /// A leaf is stored.
    pub fn store_leaf(
        &mut self,
        table: PhysAddr,
        index: usize,
        level: Level,
        output: u64,
        attributes: u64,
    ) -> &mut Self {
        self.store(table, index, Descriptor::leaf(level, PhysAddr(output), attributes).0)
    }

    /// A compare-exchange that works.
    pub fn exchange(&mut self, table: PhysAddr, index: usize, old: u64, new: u64) -> &mut Self {
        self.act(Action::CompareExchange { slot: Slot { table, index }, old, new, found: old })
    }

    /// A barrier.
    pub fn dsb(&mut self, barrier: Dsb) -> &mut Self {
        self.act(Action::Dsb(barrier))
    }

    /// A broadcast invalidation.
    pub fn tlbi(&mut self, form: Form) -> &mut Self {
        let vmid = self.vmid;
        self.act(Action::Tlbi(Invalidation { vmid, form, scope: Scope::Broadcast, hint: None, last_level: false }))
    }

    /// A broadcast invalidation with a level hint.
    pub fn tlbi_at(&mut self, form: Form, hint: Level) -> &mut Self {
        let vmid = self.vmid;
        let hint = Some(hint);
        self.act(Action::Tlbi(Invalidation { vmid, form, scope: Scope::Broadcast, hint, last_level: false }))
    }

    /// The whole sequence of D8.17.6.1 for one address: what it gives is complete at its end.
    pub fn invalidate(&mut self, form: Form) -> &mut Self {
        self.dsb(Dsb::IshSt).tlbi(form).dsb(Dsb::Ish).tlbi(Form::VmallE1).dsb(Dsb::Ish)
    }

    /// An operation begins.
    pub fn begin(&mut self, kind: OperationKind, range: IpaRange) -> &mut Self {
        self.act(Action::Begin(Operation::over(kind, range)))
    }

    /// The operation reports pages, or was asked for them.
    pub fn pages(&mut self, range: IpaRange) -> &mut Self {
        self.act(Action::Pages { start: range.start().0, end: range.end().0 })
    }

    /// The operation returns.
    pub fn end(&mut self) -> &mut Self {
        self.act(Action::Return { ok: true })
    }

    /// The operation returns an error.
    pub fn fail(&mut self) -> &mut Self {
        self.act(Action::Return { ok: false })
    }
}
