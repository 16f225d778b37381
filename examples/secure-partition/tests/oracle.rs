//! The SPM's transactions before the oracle: both partitions' tables on one modelled machine, whose TLBs hold on to whatever
//! they may. And what the oracle says when the SPM makes a mistake.

mod common;

use Partition::{First, Second};
use common::*;
use secure_partition::Partition;
use secure_partition::descriptor::Kind;
use secure_partition::layout::{self, IPA_BITS};
use secure_partition::relayer::Machine;
use secure_partition::service::{Service, World};
use secure_partition::tables::Tables;
use secure_partition::work::Random;
use stage2::*;
use stage2_oracle::{Model, Operation, OperationKind, Setup, Verdict};

/// What the SPM does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// Lends memory and forgets to invalidate what the lender's CPUs have cached.
    NoInvalidation,
    /// Invalidates for the VMID that runs, which is not the table's, as a platform does that takes
    /// [`Maintenance::tlbi`]'s VMID for granted.
    OtherVmid,
}

/// The engine's platform: the model, but for the mistake.
#[derive(Clone, Copy)]
struct Platform<'m>(&'m Model, Mistake);

// SAFETY: all is the model's.
unsafe impl TableMemory for Platform<'_> {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        self.0.allocate(frames)
    }
    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free(first, frames) };
    }
    unsafe fn load(&self, slot: Slot) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { self.0.load(slot) }
    }
    unsafe fn store(&self, slot: Slot, value: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.0.store(slot, value) };
    }
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise.
        unsafe { self.0.compare_exchange(slot, old, new) }
    }
    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.0.fill(table, first, step) };
    }
}

// SAFETY: all is the model's; the mistake breaks the promise, and no hardware is there to suffer from it.
unsafe impl Maintenance for Platform<'_> {
    fn dsb(&self, barrier: Dsb) {
        self.0.dsb(barrier);
    }
    fn isb(&self) {
        self.0.isb();
    }
    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        let [first, second] = vmids();
        let other = if vmid == first { second } else { first };
        self.0.tlbi(if self.1 == Mistake::OtherVmid { other } else { vmid }, tlbi);
    }
    fn counters(&self) -> &Counters {
        self.0.counters()
    }
}

/// The machine: each change of a table is an operation to the model, which judges what it leaves behind.
struct Judged<'m> {
    board: Board<Platform<'m>>,
    model: &'m Model,
    mistake: Mistake,
}

impl<'m> Judged<'m> {
    fn new(model: &'m Model, bbm: BbmLevel, mistake: Mistake) -> Self {
        let tables = Tables::new([Platform(model, mistake); 2], vmids(), features(bbm)).unwrap();
        for (partition, vmid) in Partition::ALL.into_iter().zip(vmids()) {
            let root = tables.of(partition).read().vttbr() & 0x0000_ffff_ffff_f000;
            model.attach(vmid, IPA_BITS, PhysAddr(root));
        }
        Self { board: Board { tables, memory: Memory::default() }, model, mistake }
    }
}

impl Machine for Judged<'_> {
    fn set_access(
        &self,
        partition: Partition,
        ranges: &[IpaRange],
        before: Permissions,
        after: Permissions,
    ) -> Result<(), Error> {
        self.model.operation(Operation::whole(OperationKind::Batch), || {
            ranges.iter().for_each(|&range| self.model.pages(range));
            if self.mistake == Mistake::NoInvalidation && after == Permissions::NONE {
                let table = self.board.tables.of(partition).read();
                let mut batch = table.batch();
                let result = ranges.iter().try_for_each(|&range| batch.protect(range, after));
                core::mem::forget(batch);
                return result;
            }
            self.board.set_access(partition, ranges, before, after)
        })
    }

    fn collapse(&self, partition: Partition, ranges: &[IpaRange]) {
        self.model.begin(Operation::whole(OperationKind::Collapse));
        self.board.collapse(partition, ranges);
        self.model.finish(true);
    }

    fn zero(&self, range: IpaRange) {
        self.board.zero(range);
    }
}

impl World for Judged<'_> {
    fn read(&self, page: Ipa, into: &mut [u8; 4096]) {
        self.board.read(page, into);
    }
    fn write(&self, page: Ipa, bytes: &[u8]) {
        self.board.write(page, bytes);
    }
}

impl<'m> Bench for Judged<'m> {
    type Platform = Platform<'m>;
    fn tables(&self) -> &Tables<Platform<'m>> {
        &self.board.tables
    }
    fn memory(&self) -> &Memory {
        &self.board.memory
    }
}

fn with_model(bbm: BbmLevel, mistake: Mistake, test: impl FnOnce(&Calls<'_, Judged<'_>>, &Model)) {
    let model = Model::new(Setup::new(bbm));
    let service = Service::new(Judged::new(&model, bbm, mistake));
    let calls = Calls(&service);
    calls.register_buffers();
    test(&calls, &model);
}

/// Lends part of a block and gets it back.
fn lend(calls: &Calls<'_, Judged<'_>>) {
    let offer = OfferOf::new(First, Kind::Lend, &[(spare(First, 5), 3)], true);
    let handle = calls.send(First, &offer).unwrap();
    calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
    calls.relinquish(Second, handle).unwrap();
    calls.reclaim(First, handle).unwrap();
}

#[test]
fn no_transaction_leaves_anything_behind_at_any_bbm_level() {
    for bbm in [BbmLevel::Level0, BbmLevel::Level1, BbmLevel::Level2, BbmLevel::Level3] {
        with_model(bbm, Mistake::None, |calls, model| {
            let frames = model.frames_in_use();
            let mut random = Random::new(bbm as u64);
            for n in 0..60 {
                model.set_pe((n % 2) as u8);
                let (sender, kind) = match n % 6 {
                    0 => (First, Kind::Donate),
                    1 => (Second, Kind::Donate),
                    2 => (First, Kind::Lend),
                    3 => (Second, Kind::Share),
                    4 => (Second, Kind::Lend),
                    _ => (First, Kind::Share),
                };
                let page = random.below(layout::spare(sender).pages() - 24);
                let ranges: Vec<(u64, u32)> = (0..1 + random.below(2))
                    .map(|r| (spare(sender, page + 12 * r), 1 + random.below(12) as u32))
                    .collect();
                let handle = calls.send(sender, &OfferOf::new(sender, kind, &ranges, n % 4 != 0)).unwrap();
                calls.retrieve(sender.other(), &Wish::of(sender, handle)).unwrap();
                if kind == Kind::Donate {
                    let back = OfferOf::new(sender.other(), kind, &ranges, true);
                    let handle = calls.send(sender.other(), &back).unwrap();
                    calls.retrieve(sender, &Wish::of(sender.other(), handle)).unwrap();
                } else {
                    calls.relinquish(sender.other(), handle).unwrap();
                    calls.reclaim(sender, handle).unwrap();
                }
                model.assert_clean();
            }
            let stats = model.stats();
            assert_eq!(stats.invalid_windows > 0, bbm == BbmLevel::Level0, "{bbm:?}: {stats:?}");
            assert_eq!(model.frames_in_use(), frames);
        });
    }
}

#[test]
fn a_forgotten_invalidation_is_found() {
    with_model(BbmLevel::Level2, Mistake::None, |calls, model| {
        lend(calls);
        model.assert_clean();
    });
    with_model(BbmLevel::Level2, Mistake::NoInvalidation, |calls, model| {
        lend(calls);
        assert!(model.verdicts().contains(&Verdict::Stale), "{:?}", model.verdicts());
        // The lent pages, each of which the lender's CPUs may go on writing to.
        let stale: Vec<u64> = model.violations().iter().map(|violation| violation.start).take(3).collect();
        assert_eq!(stale, [5, 6, 7].map(|page| spare(First, page)));
        assert!(model.violations()[0].what.contains("allows writes"), "{}", model.violations()[0]);
    });
}

#[test]
fn an_invalidation_for_another_vmid_is_found() {
    with_model(BbmLevel::Level2, Mistake::OtherVmid, |calls, model| {
        lend(calls);
        assert!(model.verdicts().contains(&Verdict::Stale), "{:?}", model.verdicts());
    });
}
