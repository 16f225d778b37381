//! TLB invalidation: gathered over an operation, issued once.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::features::Features;
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, Scope, TableMemory, Tlbi, range_tlbi_pages};
use crate::table::Stage2;
use crate::table::in_flight::Counted;
use core::mem::MaybeUninit;

/// Most pages that are invalidated one by one where there is no range form; more, and the VMID is invalidated whole.
const SINGLY: u64 = 16;
/// Ranges that are kept apart; one more, and the VMID is invalidated whole.
const RANGES: usize = if cfg!(feature = "small") { 2 } else { 4 };
/// The largest reach of one range TLBI: 8 GiB.
const LARGEST: u64 = range_tlbi_pages(3, 31);

/// What an operation has changed and not yet invalidated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    ranges: [MaybeUninit<IpaRange>; RANGES],
    /// So many of them are something; more than there is room for: all of the VMID is pending.
    count: usize,
}

impl Pending {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self { ranges: [const { MaybeUninit::uninit() }; RANGES], count: 0 }
    }

    pub(crate) const fn of(range: IpaRange) -> Self {
        let mut pending = Self::new();
        pending.ranges[0] = MaybeUninit::new(range);
        pending.count = 1;
        pending
    }

    #[inline(always)]
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The ranges; `None` if all of the VMID is pending.
    #[inline(always)]
    fn ranges(&self) -> Option<&[IpaRange]> {
        let ranges = self.ranges.get(..self.count)?;
        // SAFETY: the first `count` have been written: `add` counts one when it has.
        Some(unsafe { &*(core::ptr::from_ref(ranges) as *const [IpaRange]) })
    }

    /// Adds a range. Walks go upwards, so what is next to the last range grows it.
    #[cfg_attr(not(feature = "small"), inline(always))]
    pub(crate) fn add(&mut self, range: IpaRange) {
        if self.count == 0 {
            *self = Self::of(range);
            return;
        }
        // SAFETY: the first has been written.
        let first = unsafe { self.ranges[0].assume_init_mut() };
        if cfg!(feature = "small") || !Self::grow(first, range) {
            *self = self.add_more(range);
        }
    }

    /// Adds `range` to what is next to it.
    #[inline(always)]
    fn grow(known: &mut IpaRange, range: IpaRange) -> bool {
        let beside = known.end() >= range.start() && known.start() <= range.end();
        if beside {
            *known = IpaRange::new_unchecked(known.start().min(range.start()), known.end().max(range.end()));
        }
        beside
    }

    /// By value, so that what has one range may stay in registers.
    #[cold]
    #[cfg_attr(not(feature = "small"), inline(never))]
    fn add_more(mut self, range: IpaRange) -> Self {
        let Some(known) = self.ranges.get_mut(..self.count) else { return self };
        for known in known {
            // SAFETY: as in `ranges`.
            if Self::grow(unsafe { known.assume_init_mut() }, range) {
                return self;
            }
        }
        if let Some(next) = self.ranges.get_mut(self.count) {
            next.write(range);
        }
        self.count += 1;
        self
    }
}

/// Operands of the one range TLBI that covers `pages` pages: SCALE and NUM, rounded up. `None` where no one TLBI does.
///
/// A range that is rounded up invalidates some entries more than it needs to, by less than the range's own size; exact
/// cover would take up to four TLBIs.
#[cfg_attr(not(feature = "small"), inline(always))]
pub(crate) fn range_operands(pages: u64) -> Option<(u8, u8)> {
    if pages > LARGEST {
        return None;
    }
    let mut scale = 0;
    while pages > range_tlbi_pages(scale, 31) {
        scale += 1;
    }
    let unit = range_tlbi_pages(scale, 0);
    Some((scale, (pages.div_ceil(unit) - 1) as u8))
}

/// Pages of the granule in `range`, in which range TLBIs count.
#[inline(always)]
const fn pages_of<G: Granule>(range: IpaRange) -> u64 {
    range.bytes() >> G::SHIFT
}

/// From where a range TLBI that covers `range` begins: with VTCR_EL2.DS = 1, at a multiple of 64 KiB.
#[inline(always)]
const fn from_base<G: Granule>(range: IpaRange) -> IpaRange {
    match G::DS {
        true => IpaRange::new_unchecked(range.start().align_down(1 << G::BASE_SHIFT), range.end()),
        false => range,
    }
}

/// The range TLBI of these operands.
#[inline(always)]
const fn range_tlbi<G: Granule>(range: IpaRange, scale: u8, num: u8) -> Tlbi {
    let (granule, unit) = (G::SHIFT as u8, G::BASE_SHIFT as u8);
    Tlbi::Range { base: from_base::<G>(range).start(), scale, num, granule, unit }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn dsb(&self, barrier: Dsb) {
        self.count(match barrier {
            Dsb::IshSt => Event::DsbIshst,
            Dsb::Ish => Event::DsbIsh,
            Dsb::Nsh => Event::DsbNsh,
        });
        self.platform.dsb(barrier);
    }

    #[inline(always)]
    pub(crate) fn isb(&self) {
        self.count(Event::Isb);
        self.platform.isb();
    }

    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn tlbi(&self, tlbi: Tlbi) {
        self.count(match tlbi {
            Tlbi::Ipa { scope: Scope::Broadcast, .. } => Event::TlbiIpaBroadcast,
            Tlbi::Ipa { scope: Scope::Local, .. } => Event::TlbiIpaLocal,
            Tlbi::Range { .. } => Event::TlbiRangeBroadcast,
            Tlbi::VaLocal { .. } => Event::TlbiVaLocal,
            Tlbi::VmallE1(Scope::Broadcast) => Event::TlbiVmallE1Broadcast,
            Tlbi::VmallE1(Scope::Local) => Event::TlbiVmallE1Local,
            Tlbi::VmallS12E1(Scope::Broadcast) => Event::TlbiVmallS12E1Broadcast,
            Tlbi::VmallS12E1(Scope::Local) => Event::TlbiVmallS12E1Local,
        });
        self.platform.tlbi(self.config.vmid, tlbi);
    }

    /// Invalidates every translation of the VMID on every PE (`VMALLS12E1IS`).
    ///
    /// For an embedder that has just loaded VTTBR_EL2 with a VMID that was in use before. Other operations invalidate
    /// what they change by themselves.
    pub fn invalidate_all(&self) {
        // Orders descriptor stores before the invalidation: a walk that starts after it sees them.
        self.dsb(Dsb::IshSt);
        self.tlbi(Tlbi::VmallS12E1(Scope::Broadcast));
        // Completes it on all PEs.
        self.dsb(Dsb::Ish);
        self.isb();
        self.complete_accesses();
    }

    /// Whether one range is invalidated in the short way: by the range form, and no PE needs a repetition.
    pub(crate) fn short_invalidation(features: &Features) -> bool {
        features.tlbi_range && !features.errata.repeat_tlbi
    }

    /// After the DSB that completes broadcast invalidations: where some PE's DSB may complete before older accesses of
    /// other PEs do ([`Errata::repeat_tlbi`](crate::Errata)), another TLBI and DSB. As in Linux any broadcast TLBI will
    /// do: the entries went in time, only accesses that used them may be on their way still. The one place that does
    /// so.
    #[cfg_attr(not(feature = "small"), inline(always))]
    fn complete_accesses(&self) {
        if self.config.features.errata.repeat_tlbi {
            self.repeat();
        }
    }

    #[cold]
    #[inline(never)]
    fn repeat(&self) {
        // The cheapest: no page is needed for it.
        self.tlbi(Tlbi::Ipa { ipa: Ipa(0), scope: Scope::Broadcast });
        // Completes it, and with it all accesses that used what was invalidated before the last DSB.
        self.dsb(Dsb::Ish);
        self.isb();
    }

    /// Invalidates what is pending, on every PE; when this returns, no PE holds an old translation.
    ///
    /// The order is that of D8.17.6.1. One batch costs two broadcast TLBIs and three DSBs, or one and two.
    pub(crate) fn complete(&self, pending: &Pending) {
        if !pending.is_empty() {
            self.in_flight.note_change();
            self.invalidate_pending(pending);
        }
    }

    /// [`Stage2::complete`] for an operation that was announced, which ends with it.
    #[inline(always)]
    pub(crate) fn finish(&self, pending: &Pending, unfinished: Counted<'_>) {
        if pending.is_empty() {
            return;
        }
        self.invalidate_pending(pending);
        unfinished.end_with_change();
    }

    /// [`Stage2::complete`], for callers that note the change as well: small enough to be inlined.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn invalidate_pending(&self, pending: &Pending) {
        self.wait_for_runs();
        if !cfg!(feature = "small")
            && let Some([range]) = pending.ranges()
            && self.short_invalidation
            && (from_base::<G>(*range).bytes() - 1) / (LARGEST * G::BYTES) == 0
        {
            // What most operations amount to.
            return self.invalidate_range(*range);
        }
        self.invalidate(*pending);
    }

    /// Invalidates ranges, or all of the VMID where that is less.
    #[inline(never)]
    fn invalidate(&self, pending: Pending) {
        let range_form = self.config.features.tlbi_range;
        let reachable = |range: &IpaRange| match range_form {
            true => pages_of::<G>(from_base::<G>(*range)) <= LARGEST,
            false => pages_of::<G>(*range) <= SINGLY,
        };
        let Some(ranges) = pending.ranges().filter(|ranges| ranges.iter().all(reachable)) else {
            return self.invalidate_all();
        };
        // Orders the descriptor stores before the invalidation: a walk that starts after it sees them.
        self.platform.dsb(Dsb::IshSt);
        for range in ranges {
            let pages = pages_of::<G>(*range);
            match range_operands(pages_of::<G>(from_base::<G>(*range))) {
                Some((scale, num)) if range_form && pages > 1 => self.tlbi(range_tlbi::<G>(*range, scale, num)),
                _ => {
                    for page in 0..pages {
                        let ipa = range.start().offset(page * G::BYTES);
                        self.tlbi(Tlbi::Ipa { ipa, scope: Scope::Broadcast });
                    }
                }
            }
        }
        self.drop_combined();
        self.complete_accesses();
    }

    /// Invalidates one range, which a range TLBI reaches, on every PE.
    #[inline(always)]
    fn invalidate_range(&self, range: IpaRange) {
        // Orders the descriptor stores before the invalidation: a walk that starts after it sees them.
        self.platform.dsb(Dsb::IshSt);
        let base = range.start();
        let pages = pages_of::<G>(range);
        let operands = if pages > 1 { range_operands(pages_of::<G>(from_base::<G>(range))) } else { None };
        let Some((scale, num)) = operands else {
            self.platform.tlbi(self.config.vmid, Tlbi::Ipa { ipa: base, scope: Scope::Broadcast });
            self.platform.counters().add_page_broadcast();
            return self.drop_combined_uncounted();
        };
        self.tlbi(range_tlbi::<G>(range, scale, num));
        self.drop_combined();
    }

    /// Invalidates one leaf's entries on every PE; `ipa` lies in the leaf, and no smaller entry of it is cached.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn invalidate_leaf(&self, ipa: Ipa) {
        let page = ipa.align_down(G::BYTES);
        self.complete(&Pending::of(IpaRange::new_unchecked(page, page.offset(G::BYTES))));
    }

    /// Before an invalidation: waits until no run is half taken apart. A member that still has its Contiguous bit would
    /// let a walk cache the whole run anew, over members that have been changed. The PE that takes a run apart waits
    /// for no other meanwhile, so this ends.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    fn wait_for_runs(&self) {
        while self.in_flight.splitting_runs() {
            self.platform.wait();
        }
    }

    /// The second half of a stage-2 invalidation: combined entries may survive the stage-2 forms (R_TVTYQ). Counts the
    /// first half's barrier, too.
    #[cfg_attr(feature = "small", inline(never))]
    fn drop_combined(&self) {
        self.platform.counters().add_broadcast();
        self.drop_combined_uncounted();
    }

    #[inline(always)]
    fn drop_combined_uncounted(&self) {
        // Completes the stage-2 invalidation first: a combined entry could be made anew from a stale stage-2 entry.
        self.platform.dsb(Dsb::Ish);
        self.platform.tlbi(self.config.vmid, Tlbi::VmallE1(Scope::Broadcast));
        // Completes the invalidation of combined entries on all PEs.
        self.platform.dsb(Dsb::Ish);
        self.platform.isb();
    }

    /// Invalidates this PE's entries for a faulting access, after the tables came to allow more than they did.
    ///
    /// Other PEs may fault once more (and come here). `VMALLE1` would wipe the guest's own TLB for one page.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn invalidate_local(&self, ipa: Ipa, va: u64) {
        // Orders the page's new descriptor before the invalidation: the walk after it sees the descriptor.
        self.dsb(Dsb::IshSt);
        self.tlbi(Tlbi::Ipa { ipa, scope: Scope::Local });
        // Completes the stage-2 invalidation before the combined entry goes, which could come back from it.
        self.dsb(Dsb::Nsh);
        self.tlbi(Tlbi::VaLocal { va });
        // Completes it; the exception return that follows synchronises the context.
        self.dsb(Dsb::Nsh);
    }

    /// [`Stage2::invalidate_local`], whose parts the caller counts together.
    #[inline(always)]
    pub(crate) fn invalidate_local_uncounted(&self, ipa: Ipa, va: u64) {
        // Orders the page's new descriptor before the invalidation: the walk after it sees the descriptor.
        self.platform.dsb(Dsb::IshSt);
        self.platform.tlbi(self.config.vmid, Tlbi::Ipa { ipa, scope: Scope::Local });
        // Completes the stage-2 invalidation before the combined entry goes, which could come back from it.
        self.platform.dsb(Dsb::Nsh);
        self.platform.tlbi(self.config.vmid, Tlbi::VaLocal { va });
        // Completes it; the exception return that follows synchronises the context.
        self.platform.dsb(Dsb::Nsh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_tlbi_covers_what_it_must_and_little_more() {
        for pages in (1..5000).chain([1 << 16, (1 << 16) + 1, (1 << 18) - 1, LARGEST - 1, LARGEST]) {
            let (scale, num) = range_operands(pages).unwrap();
            assert!(scale <= 3 && num <= 31);
            let covered = range_tlbi_pages(scale, num);
            assert!(covered >= pages, "{pages} pages");
            assert!(covered < 2 * pages + 2, "{pages} pages, {covered} covered");
        }
        assert_eq!(range_operands(LARGEST + 1), None);
        assert_eq!(LARGEST * crate::arch::address::PAGE_SIZE, 8 << 30);
    }

    #[test]
    fn neighbours_merge_and_strangers_overflow_to_all() {
        let range = |a: u64, b: u64| IpaRange::new(Ipa(a << 12), Ipa(b << 12)).unwrap();
        let mut pending = Pending::new();
        assert!(pending.is_empty());
        pending.add(range(1, 2));
        pending.add(range(2, 5));
        pending.add(range(0, 1));
        assert_eq!(pending.ranges(), Some(&[range(0, 5)][..]));
        for n in 1..RANGES as u64 {
            pending.add(range(n * 100, n * 100 + 1));
            assert_eq!(pending.ranges().map(<[_]>::len), Some(n as usize + 1));
        }
        pending.add(range(1000, 1001));
        assert_eq!(pending.ranges(), None);
        pending.add(range(1, 2));
        assert!(pending.ranges().is_none() && !pending.is_empty());
    }
}
