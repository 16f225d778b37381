//! The table itself: root, registers, and what every operation shares.

pub(crate) mod dump;
pub(crate) mod in_flight;
pub(crate) mod inspect;
pub(crate) mod retire;
pub(crate) mod spare;
pub(crate) mod tlb;
pub(crate) mod walk;

use crate::arch::address::{IpaRange, PAGE_SIZE, PhysAddr};
use crate::arch::descriptor::Permissions;
use crate::arch::error::Error;
use crate::arch::features::{BbmLevel, Features, HardwareUpdate, Method};
use crate::arch::geometry::{ENTRIES, Geometry, LeafSize, Level};
use crate::arch::granule::{Granule, Granule4K};
use crate::arch::setters;
use crate::bitmap::logs::Logs;
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, Slot, TableMemory, Vmid};
use crate::table::in_flight::InFlight;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// How a table is set up: [`Config::new`], and what is to be different.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Bits of the IPA space, 32 to 48, or to 52 with 52-bit addresses ([`Granule`]); not more than the CPUs have physical
    /// address bits.
    pub ipa_bits: u8,
    /// The VMID of every translation. Entries of an earlier user of the number must have been invalidated.
    pub vmid: Vmid,
    /// What the weakest PE that will ever use the table can do ([`Features::weakest`]).
    pub features: Features,
    /// Whether contiguous runs are made where they fit, of 64 KiB and 32 MiB with the 4 KiB granule.
    pub contiguous: bool,
    /// The largest leaf that is made.
    pub largest: LeafSize,
    /// HCR_EL2.FWB (FEAT_S2FWB), which the embedder sets on every PE as it is said here: memory types are encoded for it.
    pub fwb: bool,
    /// Whether VTCR_EL2.HD is set where the features allow it, so that leaves can keep hardware dirty state.
    pub hardware_dirty: bool,
}

impl Config {
    /// Everything that the features allow, over all of the physical address space, as far as 48 bits reach.
    #[must_use]
    pub const fn new(vmid: Vmid, features: Features) -> Self {
        Self {
            ipa_bits: if features.pa_bits < 48 { features.pa_bits } else { 48 },
            vmid,
            features,
            contiguous: true,
            largest: LeafSize::Block512G,
            fwb: false,
            hardware_dirty: false,
        }
    }

    setters! {
        /// The same, with an IPA space of so many bits.
        pub const fn with_ipa_bits(mut self, ipa_bits: u8) -> Self;
        /// The same, with contiguous runs or without.
        pub const fn with_contiguous(mut self, contiguous: bool) -> Self;
        /// The same, with this largest leaf.
        pub const fn with_largest(mut self, largest: LeafSize) -> Self;
        /// The same, for HCR_EL2.FWB = 1 or 0.
        pub const fn with_fwb(mut self, fwb: bool) -> Self;
        /// The same, with hardware dirty state where the features allow it, or without.
        pub const fn with_hardware_dirty(mut self, hardware_dirty: bool) -> Self;
    }
}

/// What a frozen table has to remember.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// The root that the hardware walks from, all of whose entries are invalid meanwhile.
    pub(crate) hardware_root: PhysAddr,
}

/// A stage-2 translation table, shared by all PEs that run one virtual machine.
///
/// What only grows the table or changes permissions takes `&self`, is lock-free and may run on many PEs at once. What
/// frees tables takes `&mut self`. The embedder picks the lock that turns one into the other.
///
/// Dropping a `Stage2` leaks its frames, because hardware may still walk them; see [`Stage2::release`].
#[derive(Debug)]
pub struct Stage2<P, G: Granule = Granule4K> {
    pub(crate) platform: P,
    pub(crate) root: PhysAddr,
    pub(crate) geometry: Geometry,
    pub(crate) config: Config,
    pub(crate) method: Method,
    pub(crate) logs: Logs<G>,
    pub(crate) frozen: Option<Frozen>,
    pub(crate) in_flight: InFlight,
    /// A leaf may forbid reads: some call has asked for it.
    pub(crate) unreadable: AtomicBool,
    /// A leaf may let EL0 and EL1 execute apart: some call has asked for it.
    pub(crate) execute_apart: AtomicBool,
    /// A leaf may be one that hardware marks: there has been a log by hardware.
    pub(crate) hardware_logged: bool,
    /// See [`Stage2::short_invalidation`].
    pub(crate) short_invalidation: bool,
    granule: PhantomData<G>,
}

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// An empty table, with the 4 KiB granule: every access faults.
    ///
    /// Cost: the root's frames, filled once, and one DSB.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`], also if the features have fewer physical address bits; [`Error::BadVmid`] if the VMID is
    /// wider than the features' VMIDs; [`Error::MissingFeature`] if FWB is asked for, and not had; [`Error::OutOfMemory`].
    pub fn new(platform: P, config: Config) -> Result<Self, Error> {
        Self::with_granule(platform, config)
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// [`Stage2::new`], with any granule: `Stage2::<_, Granule16K>::with_granule(platform, config)`. Every range that is
    /// mapped, changed or logged is then one of whole pages of the granule.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::new`], and [`Error::MissingFeature`] if a PE does not have the granule at stage 2.
    pub fn with_granule(platform: P, config: Config) -> Result<Self, Error> {
        let geometry = Geometry::with_granule::<G>(config.ipa_bits)?;
        fits::<G>(&config, config.features)?;
        let config = config.with_largest(config.largest.min(LeafSize::largest::<G>()));
        let frames = geometry.root_tables();
        let root = platform.allocate(frames * G::FRAMES).ok_or(Error::OutOfMemory { ipa: geometry.range().start() })?;
        platform.counters().add(Event::FrameAllocated, frames as u64);
        for n in 0..frames {
            // SAFETY: the frame was just allocated and nothing leads to it yet.
            unsafe { fill::<P, G>(&platform, root.offset(n as u64 * G::BYTES), 0, 0) };
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
            in_flight: InFlight::new(),
            unreadable: AtomicBool::new(false),
            execute_apart: AtomicBool::new(false),
            hardware_logged: false,
            short_invalidation: Self::short_invalidation(&config.features),
            granule: PhantomData,
        })
    }

    /// The value for VTTBR_EL2 (or VSTTBR_EL2): root and VMID, CnP = 0. With 52-bit addresses A\[51:48\] are its bits 5:2.
    #[must_use]
    pub fn vttbr(&self) -> u64 {
        let root = self.root().0;
        let root = if G::ADDRESS_BITS == 52 { root & !(0xf << 48) | root >> 46 & 0x3c } else { root };
        u64::from(self.config.vmid.get()) << 48 | root
    }

    /// The value for VTCR_EL2 (D24.2.191): the granule, walks inner shareable and write-back.
    #[must_use]
    pub fn vtcr(&self) -> u64 {
        const RES1: u64 = 1 << 31;
        const IRGN0_WBWA: u64 = 1 << 8;
        const ORGN0_WBWA: u64 = 1 << 10;
        const SH0_INNER: u64 = 3 << 12;
        const VS_16_BITS: u64 = 1 << 19;
        const HA: u64 = 1 << 21;
        const HD: u64 = 1 << 22;
        const DS: u64 = 1 << 32;
        let ps = match self.config.features.pa_bits {
            ..=35 => 0,
            36..=39 => 1,
            40..=41 => 2,
            42..=43 => 3,
            44..=47 => 4,
            52.. if G::ADDRESS_BITS == 52 => 6,
            _ => 5,
        };
        let mut vtcr = RES1 | G::TG0 << 14 | SH0_INNER | ORGN0_WBWA | IRGN0_WBWA | ps << 16;
        vtcr |= self.geometry.sl0() << 6 | self.geometry.t0sz();
        if G::DS {
            vtcr |= DS;
        }
        if self.config.features.vmid_bits == 16 {
            vtcr |= VS_16_BITS;
        }
        if self.has_hardware_dirty_state() {
            vtcr |= HA | HD;
        }
        vtcr
    }

    /// The root that hardware walks from: the first of [`Geometry::root_tables`] adjacent frames.
    #[must_use]
    pub fn root(&self) -> PhysAddr {
        self.frozen.as_ref().map_or(self.root, |frozen| frozen.hardware_root)
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

    /// Whether runs of entries of `level` are made contiguous in `range`. Never in a log: one page of a run can
    /// neither be made writable alone nor marked alone (R_JKCXG).
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn makes_runs(&self, level: Level, range: IpaRange) -> bool {
        self.config.contiguous
            && self.logs.none_in(range)
            && matches!(level, Level::L2 | Level::L3)
            && LeafSize::at(level, true) <= self.config.largest
    }

    /// Refuses a range that leaves the IPA space, or has a part of a page.
    #[inline(always)]
    pub(crate) fn check(&self, range: IpaRange) -> Result<(), Error> {
        let ipa_bits = self.geometry.ipa_bits();
        if range.end().0 > 1 << ipa_bits {
            return Err(Error::OutOfRange { end: range.end(), ipa_bits });
        }
        // A range is one of whole pages of 4 KiB in any case.
        if G::FRAMES > 1 && !(range.start().0 | range.end().0).is_multiple_of(G::BYTES) {
            return Err(Error::BadRange { start: range.start(), end: range.end() });
        }
        Ok(())
    }

    /// Refuses permissions that need FEAT_XNX where it is missing, and notes those that do.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn check_execute(&self, permissions: Permissions) -> Result<(), Error> {
        if permissions.execute.is_apart() {
            if !self.config.features.xnx {
                return Err(XNX_MISSING);
            }
            // Before the first descriptor that says so.
            self.execute_apart.store(true, SeqCst);
        }
        Ok(())
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
    pub(crate) fn allocate(&self, ipa: crate::arch::address::Ipa) -> Result<PhysAddr, Error> {
        let frame = self.platform.allocate(G::FRAMES).ok_or(Error::OutOfMemory { ipa })?;
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
        unsafe { self.platform.free(frame, G::FRAMES) };
    }

    // The engine reads and writes descriptors through these four. SAFETY for all: every slot comes from the root or
    // from a table descriptor found in a reachable table; tables are freed under `&mut self` only, after they have
    // become unreachable, so under `&self` every slot lies in a live frame.

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

    /// Stores `first`, `first + step`, … into all slots of a table that is not published yet.
    ///
    /// # Safety
    ///
    /// The table was allocated and is reachable by this PE only.
    #[inline(always)]
    pub(crate) unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // SAFETY: the caller's promise.
        unsafe { fill::<P, G>(&self.platform, table, first, step) };
    }

    /// Stores to a reachable slot that no other PE writes: one marked busy by this PE, or any under `&mut self`.
    #[inline(always)]
    pub(crate) fn overwrite(&self, slot: Slot, value: u64) {
        self.count(Event::DescriptorWrite);
        self.store(slot, value);
    }
}

/// [`Stage2::fill`]: a platform fills frames of 4 KiB.
///
/// # Safety
///
/// The same.
#[inline(always)]
unsafe fn fill<P: TableMemory, G: Granule>(platform: &P, table: PhysAddr, first: u64, step: u64) {
    for (frame, first) in frames_of::<G>(table, first, step) {
        // SAFETY: the caller's promise: the frame is a part of the table.
        unsafe { platform.fill(frame, first, step) };
    }
}

/// The frames of 4 KiB of a table whose slots hold `first`, `first + step`, …, with what the first slot of each holds.
#[inline(always)]
pub(crate) fn frames_of<G: Granule>(table: PhysAddr, first: u64, step: u64) -> impl Iterator<Item = (PhysAddr, u64)> {
    (0..G::FRAMES as u64)
        .map(move |n| (table.offset(n * PAGE_SIZE), first.wrapping_add(step.wrapping_mul(n * ENTRIES as u64))))
}

/// Without FEAT_XNX, execution at one exception level only can't be had.
pub(crate) const XNX_MISSING: Error = Error::MissingFeature { feature: "FEAT_XNX" };

/// Whether PEs with `features` can use a table that is set up like this.
pub(crate) fn fits<G: Granule>(config: &Config, features: Features) -> Result<(), Error> {
    let vmid = config.vmid.get();
    if features.vmid_bits < 16 && vmid >> features.vmid_bits != 0 {
        return Err(Error::BadVmid { vmid });
    }
    if config.ipa_bits > features.pa_bits {
        return Err(Error::BadIpaSize { bits: config.ipa_bits });
    }
    if config.fwb && !features.fwb {
        return Err(Error::MissingFeature { feature: "FEAT_S2FWB" });
    }
    if !features.has_granule::<G>() {
        return Err(Error::MissingFeature { feature: "the granule at stage 2" });
    }
    Ok(())
}
