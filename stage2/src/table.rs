//! The table itself: root, registers, and what every operation shares.

use crate::address::{IpaRange, PhysAddr};
use crate::counters::Event;
use crate::dirty::Logs;
use crate::error::Error;
use crate::features::{BbmLevel, Features, HardwareUpdate};
use crate::freeze::Frozen;
use crate::geometry::{Geometry, LeafSize, Level};
use crate::platform::{Dsb, Maintenance, Slot, TableMemory, Vmid};
use crate::size_change::Method;
use crate::under_way::UnderWay;
use core::sync::atomic::AtomicBool;

/// How a table is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Bits of the IPA space, 32 to 48; not more than the CPUs have physical address bits.
    pub ipa_bits: u8,
    /// The VMID of every translation. Entries of an earlier user of the number must have been invalidated.
    pub vmid: Vmid,
    /// What the weakest PE that will ever use the table can do ([`Features::weakest`]).
    pub features: Features,
    /// Whether 64 KiB and 32 MiB contiguous runs are made where they fit.
    pub contiguous: bool,
    /// The largest leaf that is made.
    pub largest: LeafSize,
    /// Whether VTCR_EL2.HD is set where the features allow it, so that leaves can keep hardware dirty state.
    pub hardware_dirty: bool,
}

impl Config {
    /// Everything that the features allow, over all of the physical address space.
    #[must_use]
    pub const fn new(vmid: Vmid, features: Features) -> Self {
        Self {
            ipa_bits: features.pa_bits,
            vmid,
            features,
            contiguous: true,
            largest: LeafSize::Block1G,
            hardware_dirty: false,
        }
    }
}

/// A stage-2 translation table, shared by all PEs that run one virtual machine.
///
/// What only grows the table or changes permissions takes `&self`, is lock-free and may run on many PEs at once. What
/// frees tables takes `&mut self`. The embedder picks the lock that turns one into the other.
///
/// Dropping a `Stage2` leaks its frames, because hardware may still walk them; see [`Stage2::release`].
#[derive(Debug)]
pub struct Stage2<P> {
    pub(crate) platform: P,
    pub(crate) root: PhysAddr,
    pub(crate) geometry: Geometry,
    pub(crate) config: Config,
    pub(crate) method: Method,
    pub(crate) logs: Logs,
    pub(crate) frozen: Option<Frozen>,
    pub(crate) under_way: UnderWay,
    /// A leaf may forbid reads: some call has asked for it.
    pub(crate) unreadable: AtomicBool,
    /// A leaf may be one that hardware marks: there has been a log by hardware.
    pub(crate) hardware_logged: bool,
    /// See [`Stage2::short_invalidation`].
    pub(crate) short_invalidation: bool,
}

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// An empty table: every access faults.
    ///
    /// Cost: the root's frames, filled once, and one DSB.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`], also if the features have fewer physical address bits; [`Error::BadVmid`] if the VMID is
    /// wider than the features' VMIDs; [`Error::OutOfMemory`].
    pub fn new(platform: P, config: Config) -> Result<Self, Error> {
        let geometry = Geometry::new(config.ipa_bits)?;
        fits(&config, config.features)?;
        let frames = geometry.root_tables();
        let root = platform.allocate(frames).ok_or(Error::OutOfMemory { ipa: geometry.range().start() })?;
        platform.counters().add(Event::FrameAllocated, frames as u64);
        for n in 0..frames {
            // SAFETY: the frame was just allocated and nothing leads to it yet.
            unsafe { platform.fill(root.offset(n as u64 * crate::PAGE_SIZE), 0, 0) };
        }
        // Orders the root's entries before whatever makes it reachable, which is a write of VTTBR_EL2.
        platform.counters().add(Event::DsbIshst, 1);
        platform.dsb(Dsb::IshSt);
        Ok(Self {
            platform,
            root,
            geometry,
            config,
            method: Method::new(config.features.bbm),
            logs: Logs::new(),
            frozen: None,
            under_way: UnderWay::new(),
            unreadable: AtomicBool::new(false),
            hardware_logged: false,
            short_invalidation: Self::short_invalidation(&config.features),
        })
    }

    /// The value for VTTBR_EL2 (or VSTTBR_EL2): root and VMID, CnP = 0.
    #[must_use]
    pub fn vttbr(&self) -> u64 {
        u64::from(self.config.vmid.get()) << 48 | self.hardware_root().0
    }

    /// The value for VTCR_EL2 (D24.2.191): 4 KiB granule, walks inner shareable and write-back.
    #[must_use]
    pub fn vtcr(&self) -> u64 {
        const RES1: u64 = 1 << 31;
        const IRGN0_WBWA: u64 = 1 << 8;
        const ORGN0_WBWA: u64 = 1 << 10;
        const SH0_INNER: u64 = 3 << 12;
        const VS_16_BITS: u64 = 1 << 19;
        const HA: u64 = 1 << 21;
        const HD: u64 = 1 << 22;
        let ps = match self.config.features.pa_bits {
            ..=35 => 0,
            36..=39 => 1,
            40..=41 => 2,
            42..=43 => 3,
            44..=47 => 4,
            _ => 5,
        };
        let mut vtcr = RES1 | SH0_INNER | ORGN0_WBWA | IRGN0_WBWA | ps << 16;
        vtcr |= self.geometry.sl0() << 6 | self.geometry.t0sz();
        if self.config.features.vmid_bits == 16 {
            vtcr |= VS_16_BITS;
        }
        if self.has_hardware_dirty_state() {
            vtcr |= HA | HD;
        }
        vtcr
    }

    /// Whether hardware keeps dirty state in leaves that ask for it.
    #[must_use]
    pub fn has_hardware_dirty_state(&self) -> bool {
        self.config.hardware_dirty && self.config.features.hardware_update == HardwareUpdate::DirtyState
    }

    /// The shape of the table.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// How it was set up, with the features that now hold (see [`Stage2::admit`]).
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The platform that it was made with.
    #[must_use]
    pub fn platform(&self) -> &P {
        &self.platform
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
        unsafe { self.platform.free(self.root, frames) };
        self.platform
    }

    /// Whether runs of sixteen entries of `level` are made contiguous in `range`. Never in a log: one page of a run can
    /// neither be opened alone nor marked alone (R_JKCXG).
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn makes_runs(&self, level: Level, range: IpaRange) -> bool {
        self.config.contiguous
            && self.logs.spare(range)
            && matches!(level, Level::L2 | Level::L3)
            && LeafSize::at(level, true) <= self.config.largest
    }

    /// Refuses a range that leaves the IPA space.
    #[inline(always)]
    pub(crate) fn check(&self, range: IpaRange) -> Result<(), Error> {
        let ipa_bits = self.geometry.ipa_bits();
        if range.end().0 > 1 << ipa_bits { Err(Error::OutOfRange { end: range.end(), ipa_bits }) } else { Ok(()) }
    }

    /// A PE with `features` uses the table from now on: it came late, and may have less than the others.
    ///
    /// Sizes are changed as the weakest PE allows from here on, so with break-before-make where the others would not have
    /// needed it. Who wants no invalid windows calls [`Stage2::repaint`] first, which leaves no size to change, or
    /// refuses the PE.
    ///
    /// The value of [`Stage2::vtcr`] may change with it: load it anew on every PE.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`] or [`Error::BadVmid`] if the PE has fewer address or VMID bits than are in use;
    /// [`Error::NoHardwareDirtyState`] if it has none and a log relies on it: stop that first. Nothing has changed.
    pub fn admit(&mut self, features: Features) -> Result<(), Error> {
        let features = self.config.features.weakest(features);
        fits(&self.config, features)?;
        let loses_dirty_state =
            self.has_hardware_dirty_state() && features.hardware_update != HardwareUpdate::DirtyState;
        if loses_dirty_state && self.logs.any_hardware() {
            return Err(Error::NoHardwareDirtyState);
        }
        if loses_dirty_state {
            // A leaf that an ended log left to hardware would be read-only for the new PE.
            self.reopen_all(self.geometry.range())?;
        }
        self.config.features = features;
        self.method = Method::new(features.bbm);
        self.short_invalidation = Self::short_invalidation(&features);
        Ok(())
    }

    /// Splits everything to pages, in the way that the PEs so far allow, and makes nothing larger from now on.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] says how far it came; what is split stays split, and the table works on.
    pub fn repaint(&mut self) -> Result<(), Error> {
        self.config.largest = LeafSize::Page;
        self.split(self.geometry.range(), LeafSize::Page)
    }

    /// The BBM level that sizes are changed by.
    #[must_use]
    pub fn bbm_level(&self) -> BbmLevel {
        self.config.features.bbm
    }

    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn count(&self, event: Event) {
        self.platform.counters().add(event, 1);
    }

    /// Allocates one frame for a table that translates `ipa`.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn allocate(&self, ipa: crate::Ipa) -> Result<PhysAddr, Error> {
        let frame = self.platform.allocate(1).ok_or(Error::OutOfMemory { ipa })?;
        self.count(Event::FrameAllocated);
        Ok(frame)
    }

    /// Frees a table frame.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::free`]: nothing leads to the frame, in memory or in a cache.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) unsafe fn free(&self, frame: PhysAddr) {
        self.count(Event::FrameFreed);
        // SAFETY: the caller's promise; single frames are allocated by `allocate`.
        unsafe { self.platform.free(frame, 1) };
    }

    // The engine reads and writes descriptors through these four. SAFETY for all: every slot comes from the root or from
    // a table descriptor found in a reachable table; tables are freed under `&mut self` only, after they have become
    // unreachable, so under `&self` every slot lies in a live frame.

    #[inline(always)]
    pub(crate) fn load(&self, slot: Slot) -> u64 {
        // SAFETY: see above.
        unsafe { self.platform.load(slot) }
    }

    #[inline(always)]
    pub(crate) fn store(&self, slot: Slot, value: u64) {
        // SAFETY: see above.
        unsafe { self.platform.store(slot, value) };
    }

    /// Replaces `old` by `new` in a reachable table, or says what was there.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn replace(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: see above.
        let result = unsafe { self.platform.compare_exchange(slot, old, new) };
        self.count(if result.is_ok() { Event::DescriptorWrite } else { Event::CasRetry });
        result
    }

    /// Stores to a reachable slot that no other PE writes: one marked busy by this PE, or any under `&mut self`.
    #[inline(always)]
    pub(crate) fn overwrite(&self, slot: Slot, value: u64) {
        self.count(Event::DescriptorWrite);
        self.store(slot, value);
    }
}

/// Whether PEs with `features` can use a table that is set up like this.
fn fits(config: &Config, features: Features) -> Result<(), Error> {
    let vmid = config.vmid.get();
    if features.vmid_bits < 16 && vmid >> features.vmid_bits != 0 {
        return Err(Error::BadVmid { vmid });
    }
    if config.ipa_bits > features.pa_bits {
        return Err(Error::BadIpaSize { bits: config.ipa_bits });
    }
    Ok(())
}
