//! VMIDs for more virtual machines than there are numbers: generations and rollover.
//!
//! A VMID is lent to a virtual machine until the numbers run out. Then a new generation begins: all TLBs are emptied
//! once, machines that are running keep their numbers, all others get new ones when they run next.

use crate::platform::traits::Vmid;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits of a [`Lease`] that hold the VMID; those above hold the generation.
const VMID_BITS: u32 = 16;
const VMID_MASK: u64 = (1 << VMID_BITS) - 1;
/// In a PE's place: nothing runs there. No VMID is 0 (R_TLJCY).
const NOTHING: u64 = 0;

/// What a virtual machine remembers of its VMID: one for each machine, for as long as it lives.
#[derive(Debug, Default)]
pub struct Lease(AtomicU64);

impl Lease {
    /// No VMID yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// Allocates VMIDs to virtual machines, on up to `PES` PEs, from at most 64 × `WORDS` numbers: 4 words are enough for
/// 8-bit VMIDs, 1024 for 16-bit ones.
///
/// The borrow checker is the lock: [`Vmids::current`], on every entry to a machine, takes `&self` and runs on all PEs
/// at once; [`Vmids::renew`], which may begin a new generation, takes `&mut self`. A read-write lock turns one into the
/// other:
///
/// ```
/// # use stage2::vmid::{Lease, Vmids};
/// # use std::sync::RwLock;
/// static VMIDS: RwLock<Vmids<4, 4>> = RwLock::new(Vmids::new(8));
///
/// fn vmid_for(lease: &Lease, pe: usize) -> stage2::Vmid {
///     let current = VMIDS.read().unwrap().current(pe, lease);
///     // On hardware: `aarch64::invalidate_all_vmids`.
///     current.unwrap_or_else(|| VMIDS.write().unwrap().renew(pe, lease, || ()))
/// }
/// # assert_eq!(vmid_for(&Lease::new(), 0).get(), 1);
/// ```
#[derive(Debug)]
pub struct Vmids<const PES: usize, const WORDS: usize> {
    /// In the place of a lease's generation; starts above 0, so that a new lease is out of date.
    generation: u64,
    /// Numbers below this one are in use.
    limit: usize,
    /// One bit a number: set where it was given out in this generation, or was running when it began.
    used: [u64; WORDS],
    /// The lease that runs on each PE.
    active: [AtomicU64; PES],
    /// The lease that ran on each PE when this generation began.
    kept: [u64; PES],
}

impl<const PES: usize, const WORDS: usize> Vmids<PES, WORDS> {
    /// A new generation begins with at most one number in use for each PE: there must be others. VMIDs have 8 bits or
    /// more.
    const ENOUGH: () = assert!(1 <= WORDS && WORDS <= 1024 && PES + 2 <= 64 * WORDS && PES + 2 <= 256);

    /// An allocator for VMIDs of `bits` bits, 8 or 16 ([`Features::vmid_bits`](crate::Features), of the weakest PE).
    /// With `WORDS` too small for so many, the larger numbers are not used.
    #[must_use]
    pub const fn new(bits: u8) -> Self {
        let () = Self::ENOUGH;
        let numbers = if bits >= 16 { 1 << 16 } else { 1 << 8 };
        Self {
            generation: 1 << VMID_BITS,
            limit: if numbers < 64 * WORDS { numbers } else { 64 * WORDS },
            used: [0; WORDS],
            active: [const { AtomicU64::new(NOTHING) }; PES],
            kept: [NOTHING; PES],
        }
    }

    /// The machine's VMID, if it is of this generation; marks it as running on `pe`, in place of what ran there. `None`
    /// also for a `pe` that the allocator was not made for.
    ///
    /// Cost: two loads and a store.
    #[must_use]
    #[inline]
    pub fn current(&self, pe: usize, lease: &Lease) -> Option<Vmid> {
        let value = lease.0.load(Relaxed);
        if value & !VMID_MASK != self.generation {
            return None;
        }
        self.active.get(pe)?.store(value, Relaxed);
        Vmid::new((value & VMID_MASK) as u16).ok()
    }

    /// No machine runs on `pe` any more, so that none needs to keep its VMID on its account.
    pub fn leave(&self, pe: usize) {
        if let Some(active) = self.active.get(pe) {
            active.store(NOTHING, Relaxed);
        }
    }

    /// The machine's VMID in this generation, or a new one; marks it as running on `pe`, one of the allocator's.
    ///
    /// When no number is left, a new generation begins and `invalidate` is called. It must remove the entries of all
    /// VMIDs from the TLBs of all PEs before it returns (`TLBI ALLE1IS`, DSB ISH; `aarch64::invalidate_all_vmids`
    /// does). If the VMID is not the one that the machine's table has, the table is given it next
    /// ([`Stage2::set_vmid`](crate::Stage2::set_vmid)).
    ///
    /// Cost: one load for each 64 numbers; once a generation, an invalidation of everything.
    pub fn renew(&mut self, pe: usize, lease: &Lease, mut invalidate: impl FnMut()) -> Vmid {
        if let Some(vmid) = self.current(pe, lease) {
            // Another PE has renewed it meanwhile.
            return vmid;
        }
        let old = lease.0.load(Relaxed);
        // Ends after the second round at the latest, because of `ENOUGH`.
        let vmid = loop {
            if let Some(vmid) = self.keep(old).or_else(|| self.take()) {
                break vmid;
            }
            self.begin_generation();
            invalidate();
        };
        let value = self.generation | u64::from(vmid.get());
        lease.0.store(value, Relaxed);
        if let Some(active) = self.active.get(pe) {
            active.store(value, Relaxed);
        }
        vmid
    }

    /// The number of a lease of an earlier generation, if it was kept: a PE was running with it.
    fn keep(&mut self, old: u64) -> Option<Vmid> {
        let mut kept = None;
        for lease in self.kept.iter_mut().filter(|lease| **lease == old && old != NOTHING) {
            // Of this generation from now on, so that it is known if the next one begins while the machine still runs.
            *lease = self.generation | old & VMID_MASK;
            kept = Vmid::new((old & VMID_MASK) as u16).ok();
        }
        kept
    }

    /// A number that is not in use.
    fn take(&mut self) -> Option<Vmid> {
        for (word, bits) in self.used.iter_mut().enumerate() {
            // VMID 0 is reserved (R_TLJCY).
            *bits |= u64::from(word == 0);
            let number = 64 * word + bits.trailing_ones() as usize;
            if *bits != u64::MAX && number < self.limit {
                *bits |= 1 << (number % 64);
                return Vmid::new(number as u16).ok();
            }
        }
        None
    }

    fn begin_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1 << VMID_BITS).max(1 << VMID_BITS);
        self.used.fill(0);
        for (active, kept) in self.active.iter().zip(&mut self.kept) {
            // A PE that has entered no machine since the last generation began may still run what was kept for it then.
            match active.swap(NOTHING, Relaxed) {
                NOTHING => {}
                running => *kept = running,
            }
            let number = (*kept & VMID_MASK) as usize;
            if let Some(bits) = self.used.get_mut(number / 64) {
                *bits |= 1 << (number % 64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const PES: usize = 3;

    /// TLBs that keep every entry until they are emptied: which machine each PE's entries of a VMID belong to.
    #[derive(Default)]
    struct Tlbs {
        entries: [HashMap<Vmid, usize>; PES],
        running: [Option<(Vmid, usize)>; PES],
    }

    impl Tlbs {
        fn run(&mut self, pe: usize, vmid: Vmid, machine: usize) {
            self.running[pe] = Some((vmid, machine));
            let before = *self.entries[pe].entry(vmid).or_insert(machine);
            assert_eq!(before, machine, "PE {pe} still has entries of machine {before} for {vmid:?}");
        }

        /// What runs on, fills its TLB again at once.
        fn invalidate(&mut self) {
            self.entries = Default::default();
            for pe in 0..PES {
                if let Some((vmid, machine)) = self.running[pe] {
                    self.run(pe, vmid, machine);
                }
            }
        }
    }

    /// Random machines on random PEs, one word of numbers; returns the number of generations.
    fn storm(machines: usize, rounds: usize, leave: bool) -> u64 {
        let mut vmids = Vmids::<PES, 1>::new(8);
        let leases: Vec<Lease> = (0..machines).map(|_| Lease::new()).collect();
        let mut tlbs = Tlbs::default();
        let mut seed = 0x1234_5678_9abc_def0_u64;
        for _ in 0..rounds {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (pe, machine) = ((seed >> 33) as usize % PES, (seed >> 45) as usize % machines);
            if leave && seed >> 60 == 0 {
                vmids.leave(pe);
                tlbs.running[pe] = None;
                continue;
            }
            let vmid = match vmids.current(pe, &leases[machine]) {
                Some(vmid) => vmid,
                None => {
                    tlbs.running[pe] = None;
                    vmids.renew(pe, &leases[machine], || tlbs.invalidate())
                }
            };
            // All PEs that run the machine have the same VMID for it: it is one machine to a broadcast TLBI.
            for (other, machine) in tlbs.running.iter().flatten().filter(|(_, m)| *m == machine) {
                assert_eq!(*other, vmid, "machine {machine}");
            }
            tlbs.run(pe, vmid, machine);
        }
        vmids.generation >> VMID_BITS
    }

    #[test]
    fn no_machine_finds_entries_of_another() {
        assert_eq!(storm(63, 100_000, false), 1, "63 numbers are enough for 63 machines");
        assert!(storm(64, 100_000, false) > 10);
        assert!(storm(200, 100_000, true) > 100);
    }

    #[test]
    fn a_running_machine_keeps_its_number_over_any_number_of_generations() {
        let mut vmids = Vmids::<PES, 1>::new(8);
        let runner = Lease::new();
        let vmid = vmids.renew(0, &runner, || ());
        let mut generations = 0;
        for _ in 0..1000 {
            let other = vmids.renew(1, &Lease::new(), || generations += 1);
            assert_ne!(other, vmid);
        }
        assert!(generations > 10);
        assert_eq!(vmids.current(0, &runner), None, "its generation is over");
        assert_eq!(vmids.renew(2, &runner, || panic!("no need to begin another")), vmid);
        assert_eq!(vmids.current(0, &runner), Some(vmid));
    }

    /// PE 0 runs on with what it has; other PEs enter the same machine, once a generation, and leave it.
    #[test]
    fn a_number_is_kept_for_a_pe_that_runs_on_while_generations_begin_and_others_enter_its_machine() {
        let mut vmids = Vmids::<PES, 1>::new(8);
        let runner = Lease::new();
        let vmid = vmids.renew(0, &runner, || ());
        for generation in 0..5 {
            let mut begun = false;
            while !begun {
                let other = vmids.renew(1, &Lease::new(), || begun = true);
                assert_ne!(other, vmid, "generation {generation}: PE 0 runs with it");
            }
            assert_eq!(vmids.renew(2, &runner, || panic!("no need to begin another")), vmid, "one machine, one number");
            vmids.leave(2);
        }
    }

    #[test]
    fn a_number_is_given_to_another_after_its_machine_has_left_and_a_generation_begun() {
        let mut vmids = Vmids::<PES, 1>::new(8);
        let vmid = vmids.renew(0, &Lease::new(), || ());
        vmids.leave(0);
        let mut begun = false;
        let first_anew = loop {
            let other = vmids.renew(1, &Lease::new(), || begun = true);
            if begun {
                break other;
            }
        };
        assert_eq!(first_anew, vmid, "the lowest number that nobody keeps");
    }

    #[test]
    fn numbers_fit_their_size_and_none_is_zero() {
        for (bits, last) in [(8, 255), (16, 319)] {
            let mut vmids = Vmids::<PES, 5>::new(bits);
            let mut invalidated = false;
            let numbers: Vec<u16> =
                core::iter::from_fn(|| Some(vmids.renew(0, &Lease::new(), || invalidated = true).get()))
                    .take(last)
                    .collect();
            assert!(numbers.iter().copied().eq(1..=last as u16) && !invalidated);
            vmids.renew(0, &Lease::new(), || invalidated = true);
            assert!(invalidated, "{bits} bits");
        }
    }

    #[test]
    fn a_stranger_to_the_allocator_runs_nothing() {
        let mut vmids = Vmids::<1, 1>::new(8);
        let lease = Lease::new();
        vmids.renew(0, &lease, || ());
        assert_eq!(vmids.current(1, &lease), None);
        vmids.leave(7);
    }
}
