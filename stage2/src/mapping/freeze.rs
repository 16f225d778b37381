//! Stopping every vCPU at its next access, without an interrupt.

use crate::arch::error::Error;
use crate::arch::granule::Granule;
use crate::platform::{Maintenance, TableMemory};
use crate::table::walk::slots;
use crate::table::{Frozen, Stage2};

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Makes every access of the guest fault, instruction fetches included, until [`Stage2::thaw`]. When this returns,
    /// no store of the guest can land any more: its memory stands still.
    ///
    /// The entries of the root go to a copy that hardware does not know, so that every other operation works meanwhile
    /// as it always does. [`Stage2::fault`] says [`crate::Outcome::Frozen`]. Freezing twice is freezing once.
    ///
    /// Cost: a second root, a store for each of its entries, one invalidation of the VMID.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] for the copy of the root; nothing has changed.
    pub fn freeze(&mut self) -> Result<(), Error> {
        if self.frozen.is_some() {
            return Ok(());
        }
        let tables = self.geometry.root_tables();
        let copy = self
            .platform
            .allocate(tables * G::FRAMES)
            .ok_or(Error::OutOfMemory { ipa: self.geometry.range().start() })?;
        self.platform.counters().add(crate::platform::counters::Event::FrameAllocated, tables as u64);
        for (from, to) in slots::<G>(self.root, tables).zip(slots::<G>(copy, tables)) {
            // SAFETY: the root's frames are live. Taken out atomically: hardware may mark a 1 GiB leaf at any moment.
            let value = unsafe { self.platform.fetch_clear(from, u64::MAX) };
            self.store(to, value);
        }
        self.frozen = Some(Frozen { hardware_root: self.root });
        self.root = copy;
        // After this no PE holds a translation; stores that had one have completed with the DSB that ends it.
        self.invalidate_all();
        Ok(())
    }

    /// Ends [`Stage2::freeze`]: the guest finds everything where it was, but for what was changed meanwhile.
    pub fn thaw(&mut self) {
        let Some(Frozen { hardware_root }) = self.frozen.take() else { return };
        let tables = self.geometry.root_tables();
        for (from, to) in slots::<G>(self.root, tables).zip(slots::<G>(hardware_root, tables)) {
            let value = self.load(from);
            if value != 0 {
                self.store(to, value);
            }
        }
        let copy = core::mem::replace(&mut self.root, hardware_root);
        // Orders the entries before the guest is told to go on.
        self.dsb(crate::platform::Dsb::IshSt);
        self.platform.counters().add(crate::platform::counters::Event::FrameFreed, tables as u64);
        // SAFETY: the copy was never reachable by hardware, and the engine uses the other root again.
        unsafe { self.platform.free(copy, tables * G::FRAMES) };
    }

    /// Whether the table is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }
}
