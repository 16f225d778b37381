//! What happens to a whole table: PEs that come late, another VMID, its end.

use crate::arch::error::Error;
use crate::arch::features::{Features, HardwareUpdate, Method};
use crate::arch::geometry::LeafSize;
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Maintenance, TableMemory, Vmid};
use crate::table::{Stage2, XNX_MISSING, fits};

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// A PE with `features` uses the table from now on: it came late, and may have less than the others.
    ///
    /// Sizes are changed as the weakest PE allows from here on, so with break-before-make where the others would not
    /// have needed it. An owner that wants no invalid windows calls [`Stage2::split_all_for_good`] first, which leaves
    /// no size to change, or refuses the PE.
    ///
    /// The value of [`Stage2::vtcr`] may change with it: load it anew on every PE.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`] or [`Error::BadVmid`] if the PE has fewer IPA or VMID bits than are in use;
    /// [`Error::NoHardwareDirtyState`] if it has none and a log relies on it: stop that first; [`Error::MissingFeature`] if it
    /// lacks the granule, or its physical addresses are shorter than what the table may lead to, or if the table uses FWB, or
    /// permissions that need FEAT_XNX, which a PE without would read as more. Nothing has changed.
    pub fn admit(&mut self, features: Features) -> Result<(), Error> {
        let before = self.config.features.used_by::<G>().pa_bits;
        let features = self.config.features.weakest(features);
        fits::<G>(&self.config, features)?;
        if features.used_by::<G>().pa_bits < before {
            return Err(Error::MissingFeature { feature: "physical addresses as long as the table's" });
        }
        let loses_dirty_state =
            self.has_hardware_dirty_state() && features.hardware_update != HardwareUpdate::DirtyState;
        if loses_dirty_state && self.logs.any_hardware() {
            return Err(Error::NoHardwareDirtyState);
        }
        if !features.xnx && *self.execute_apart.get_mut() {
            return Err(XNX_MISSING);
        }
        // Before anything is done: the executing PE may be the new one, without the others' instructions.
        self.config.features = features;
        self.method = Method::new(features.bbm);
        self.short_invalidation = Self::short_invalidation(&features);
        if loses_dirty_state {
            // A leaf that an ended log left to hardware would be read-only for the new PE.
            self.reopen_all(self.geometry.range())?;
        }
        Ok(())
    }

    /// Splits everything to pages, in the way that the PEs so far allow, and makes nothing larger from now on.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] says how far it came; what is split stays split, and the table works on.
    pub fn split_all_for_good(&mut self) -> Result<(), Error> {
        self.config.largest = LeafSize::Page;
        self.split(self.geometry.range(), LeafSize::Page)
    }

    /// The table's translations are `vmid`'s from now on: load [`Stage2::vttbr`] anew. For a machine whose VMID was
    /// given to another while it did not run.
    ///
    /// No TLB may hold entries of another table for `vmid`; that is what [`Vmids`](crate::vmid::Vmids) sees to.
    ///
    /// # Errors
    ///
    /// [`Error::BadVmid`] if it is wider than the features' VMIDs; the table keeps the one that it has.
    pub fn set_vmid(&mut self, vmid: Vmid) -> Result<(), Error> {
        if self.config.features.vmid_bits < 16 && vmid.get() >> self.config.features.vmid_bits != 0 {
            return Err(Error::BadVmid { vmid: vmid.get() });
        }
        self.config.vmid = vmid;
        Ok(())
    }

    /// Gives the root and all tables back and returns the platform.
    ///
    /// Cost: one `VMALLS12E1IS`, one load a descriptor.
    ///
    /// # Safety
    ///
    /// No PE has this table in VTTBR_EL2 with stage 2 on, nor will have it again.
    pub unsafe fn release(mut self) -> P {
        self.thaw();
        self.invalidate_all();
        self.free_tables_below(self.root, self.geometry.start_level(), self.geometry.root_tables());
        let frames = self.geometry.root_tables();
        self.platform.counters().add(Event::FrameFreed, frames as u64);
        // SAFETY: the caller says that no PE walks from the root, and walk caches are empty after the invalidation.
        unsafe { self.platform.free(self.root, frames * G::FRAMES) };
        self.platform
    }
}
