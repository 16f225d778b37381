//! The engine and the model, put together: each call of the engine is an operation that is judged when it returns.

use crate::event::{Access, Operation, OperationKind};
use crate::model::Model;
use stage2::fault::Status;
use stage2::{
    Abort, Attributes, Batch, Config, Error, FaultHistory, Granule, Granule4K, Ipa, IpaRange, LeafSize, Maintenance,
    Outcome, Permissions, PhysAddr, Stage2, TableMemory, Vmid,
};

/// A [`Stage2`] on a [`Model`], or on a platform that wraps one.
#[derive(Debug)]
pub struct Checked<'m, P: TableMemory + Maintenance = &'m Model, G: Granule = Granule4K> {
    pub(crate) model: &'m Model,
    pub(crate) stage2: Stage2<P, G>,
}

/// A [`Batch`] that tells the model what it is asked to change.
#[derive(Debug)]
pub struct CheckedBatch<'t, P: TableMemory + Maintenance = &'t Model, G: Granule = Granule4K> {
    model: &'t Model,
    batch: Batch<'t, P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> CheckedBatch<'_, P, G> {
    /// [`Batch::protect`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn protect(&mut self, range: IpaRange, permissions: Permissions) -> Result<(), Error> {
        self.model.pages(range);
        self.batch.protect(range, permissions)
    }

    /// [`Batch::split`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn split(&mut self, range: IpaRange, to: LeafSize) -> Result<(), Error> {
        self.batch.split(range, to)
    }
}

impl<'m> Checked<'m> {
    /// A table on the model, which walks it from now on.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::new`].
    pub fn new(model: &'m Model, config: Config) -> Result<Self, Error> {
        Self::on(model, model, config)
    }
}

impl<'m, P: TableMemory + Maintenance> Checked<'m, P> {
    /// A table on `platform`, which passes everything on to `model`.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::new`].
    pub fn on(model: &'m Model, platform: P, config: Config) -> Result<Self, Error> {
        Self::with_granule(model, platform, config)
    }
}

impl<'m, P: TableMemory + Maintenance, G: Granule> Checked<'m, P, G> {
    /// A table on `platform`, which passes everything on to `model`, with the granule that [`Setup`](crate::Setup) has.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::with_granule`].
    ///
    /// # Panics
    ///
    /// If hardware would make something else of the table's VTCR_EL2 and VTTBR_EL2 than the model does.
    pub fn with_granule(model: &'m Model, platform: P, config: Config) -> Result<Self, Error> {
        let operation = Operation::whole(OperationKind::New);
        let stage2 = model.operation(operation, || Stage2::with_granule(platform, config))?;
        let shape = model.setup().granule;
        let walk = shape.walk(stage2.vtcr(), stage2.vttbr());
        let (ipa_bits, level, root) = walk.expect("registers for the model's granule, and a walk that there is");
        assert_eq!(Some(level), shape.root(ipa_bits).map(|(level, _)| level), "the start level");
        assert_eq!((ipa_bits, root), (config.ipa_bits, stage2.root()), "the size and the root");
        model.attach(config.vmid, ipa_bits, root);
        Ok(Self { model, stage2 })
    }

    /// The engine, for what needs no judgement.
    #[must_use]
    pub fn stage2(&self) -> &Stage2<P, G> {
        &self.stage2
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The table's VMID.
    #[must_use]
    pub fn vmid(&self) -> Vmid {
        self.stage2.config().vmid
    }

    /// [`Stage2::map`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map(&mut self, range: IpaRange, output: PhysAddr, attributes: Attributes) -> Result<(), Error> {
        let stage2 = &mut self.stage2;
        self.model.operation(Operation::over(OperationKind::Map, range), || stage2.map(range, output, attributes))
    }

    /// [`Stage2::unmap`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn unmap(&mut self, range: IpaRange) -> Result<(), Error> {
        let stage2 = &mut self.stage2;
        self.model.operation(Operation::over(OperationKind::Unmap, range), || stage2.unmap(range))
    }

    /// [`Stage2::protect`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn protect(&self, range: IpaRange, permissions: Permissions) -> Result<(), Error> {
        let operation = Operation::over(OperationKind::Protect, range);
        self.model.operation(operation, || self.stage2.protect(range, permissions))
    }

    /// [`Stage2::split`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn split(&self, range: IpaRange, to: LeafSize) -> Result<(), Error> {
        self.model.operation(Operation::over(OperationKind::Split, range), || self.stage2.split(range, to))
    }

    /// [`Stage2::collapse`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn collapse(&mut self, range: IpaRange) -> Result<(), Error> {
        let stage2 = &mut self.stage2;
        self.model.operation(Operation::over(OperationKind::Collapse, range), || stage2.collapse(range))
    }

    /// [`Stage2::batch`]: `changes` is done in one batch, which is judged when it has finished.
    ///
    /// # Errors
    ///
    /// What `changes` returns.
    pub fn batch(&self, changes: impl FnOnce(&mut CheckedBatch<'_, P, G>) -> Result<(), Error>) -> Result<(), Error> {
        self.model.operation(Operation::whole(OperationKind::Batch), || {
            let mut batch = CheckedBatch { model: self.model, batch: self.stage2.batch() };
            let result = changes(&mut batch);
            batch.batch.finish();
            result
        })
    }

    /// [`Stage2::fault`].
    pub fn fault(&self, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        let page = abort.ipa.align_down(G::BYTES);
        let range = IpaRange::from_size(page, G::BYTES);
        let operation = Operation { kind: OperationKind::Fault, range: range.ok() };
        self.model.begin(operation);
        // Every other page goes the short ways first, as in an exit path.
        let store = abort.write && abort.status == Status::Permission && !abort.stage1_walk;
        let short = store
            && page.0 & G::BYTES == 0
            && (self.stage2.first_write(page, abort.va, history)
                || self.stage2.first_write_to_block(page, abort.va, history));
        let outcome = if short { Outcome::Retry } else { self.stage2.fault(abort, history) };
        self.model.finish(true);
        outcome
    }

    /// What a guest's store to `ipa` on the executing PE comes to: it lands, after the faults that it takes, or it is
    /// refused with the outcome that says why. Which of the entries that it may hold the PE uses is the model's choice,
    /// and any that lets the store through will do.
    ///
    /// # Errors
    ///
    /// The outcome, where it is not to try again.
    pub fn store(&self, ipa: Ipa, history: &mut FaultHistory) -> Result<(), Outcome> {
        while !self.model.guest_write(self.model.pe(), ipa) {
            let status = match self.model.translate(self.vmid(), ipa) {
                Some(_) => Status::Permission,
                None => Status::Translation,
            };
            let abort = Abort { status, write: true, execute: false, stage1_walk: false, el0: false, ipa, va: ipa.0 };
            match self.fault(&abort, history) {
                Outcome::Retry => {}
                outcome => return Err(outcome),
            }
        }
        Ok(())
    }

    /// What a guest's access to the virtual address `va` on the executing PE comes to, if the PE uses the worst of all that it
    /// may hold: it is done, after the faults that it takes, or it is refused. As in an exit path, the IPA of a permission
    /// fault is what `AT` says.
    ///
    /// # Errors
    ///
    /// The outcome, where it is not to try again.
    pub fn access(&self, va: u64, access: Access, history: &mut FaultHistory) -> Result<(), Outcome> {
        while let Err(mut abort) = self.model.guest_access(self.vmid(), va, access) {
            if abort.status == Status::Permission {
                // Where the guest has unmapped the page meanwhile, the next try is its own fault.
                let Some(ipa) = self.model.address_translate(self.vmid(), va) else { continue };
                abort.ipa = ipa;
            }
            match self.fault(&abort, history) {
                Outcome::Retry => {}
                outcome => return Err(outcome),
            }
        }
        Ok(())
    }

    /// [`Stage2::freeze`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn freeze(&mut self) -> Result<(), Error> {
        let stage2 = &mut self.stage2;
        self.model.operation(Operation::whole(OperationKind::Freeze), || stage2.freeze())
    }

    /// [`Stage2::thaw`].
    pub fn thaw(&mut self) {
        self.model.begin(Operation::whole(OperationKind::Thaw));
        self.stage2.thaw();
        self.model.finish(true);
    }

    /// [`Stage2::release`], after the model has been told that no PE walks the table any more.
    pub fn release(self) -> P {
        let Self { model, stage2 } = self;
        model.detach(stage2.config().vmid);
        model.begin(Operation::whole(OperationKind::Release));
        // SAFETY: the model's walks of this VMID have ended with `detach`.
        let platform = unsafe { stage2.release() };
        model.finish(true);
        platform
    }
}
