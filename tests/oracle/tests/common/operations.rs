//! Random operations, weighted towards what is difficult: edges of leaves, and the same few blocks again and again.

use super::{GIB, Machine, Units, range, units};
use core::fmt;
use proptest::prelude::*;
use stage2::*;
use stage2_oracle::Access;

/// One change of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Protect(IpaRange, Permissions),
    Split(IpaRange, LeafSize),
}

impl Change {
    pub fn range(self) -> IpaRange {
        match self {
            Change::Protect(range, _) | Change::Split(range, _) => range,
        }
    }
}

/// Virtual pages that the guest of these tests maps.
pub const VIRTUAL: usize = 8;

/// Something to do to a table.
#[derive(Clone)]
pub enum Op {
    Map(IpaRange, u64, Attributes),
    Unmap(IpaRange),
    Protect(IpaRange, Permissions),
    Split(IpaRange, LeafSize),
    Collapse(IpaRange),
    Batch(Vec<Change>),
    /// A guest's store.
    Store(u64),
    /// A guest's fetch or load that faults for no reason that the table knows.
    Spurious(u64),
    /// The guest maps one of its virtual pages elsewhere, and says so to its TLBs or not.
    Remap(usize, u64, bool),
    /// A PE accesses one of the guest's virtual pages, with the worst that it may hold.
    Access(u8, usize, Access),
    Start(IpaRange, Mechanism, bool),
    /// A second log begins where the first one ends, and has so many pages.
    Beside(u64, Mechanism, bool),
    /// Logs are told apart by a number of any size.
    Harvest(usize),
    /// Into a bitmap that has this in each word already.
    HarvestInto(usize, u64),
    Peek(usize),
    Clear(usize, Vec<u64>),
    ClearFrom(usize, Vec<u64>),
    Stop(usize),
    /// The log ends, and the leaves stay as they are.
    End(usize),
    FreezeAndThaw,
}

/// Permissions in three letters.
fn rwx(permissions: Permissions) -> String {
    permissions.to_string()
}

/// One line each: a failing run is a list of them.
impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Map(range, offset, Attributes { memory, permissions }) => {
                write!(f, "map {range} + {offset:#x} {memory:?} {}", rwx(*permissions))
            }
            Op::Unmap(range) => write!(f, "unmap {range}"),
            Op::Protect(range, permissions) => write!(f, "protect {range} {}", rwx(*permissions)),
            Op::Split(range, size) => write!(f, "split {range} to {size:?}"),
            Op::Collapse(range) => write!(f, "collapse {range}"),
            Op::Batch(changes) => {
                write!(f, "batch")?;
                changes.iter().try_for_each(|change| match change {
                    Change::Protect(range, permissions) => write!(f, ", {range} {}", rwx(*permissions)),
                    Change::Split(range, size) => write!(f, ", split {range} to {size:?}"),
                })
            }
            Op::Store(ipa) => write!(f, "store to {ipa:#x}"),
            Op::Spurious(ipa) => write!(f, "spurious fault at {ipa:#x}"),
            Op::Start(range, mechanism, all_dirty) => write!(f, "start {range} {mechanism:?}, all dirty: {all_dirty}"),
            Op::Remap(n, ipa, told) => write!(f, "the guest maps its page {n} to {ipa:#x}, invalidates: {told}"),
            Op::Access(pe, n, access) => write!(f, "{access:?} by PE{pe} at the guest's page {n}"),
            Op::Beside(pages, mechanism, all_dirty) => {
                write!(f, "start {pages} pages behind the log, {mechanism:?}, all dirty: {all_dirty}")
            }
            Op::Harvest(n) => write!(f, "harvest log {n}"),
            Op::HarvestInto(n, noise) => write!(f, "harvest log {n} into {noise:#x}"),
            Op::Peek(n) => write!(f, "peek at log {n}"),
            Op::Clear(n, pages) => write!(f, "clear log {n} {pages:#x?}"),
            Op::ClearFrom(n, pages) => write!(f, "clear log {n} from {pages:#x?}"),
            Op::Stop(n) => write!(f, "stop log {n}"),
            Op::End(n) => write!(f, "end log {n}"),
            Op::FreezeAndThaw => write!(f, "freeze and thaw"),
        }
    }
}

/// Which operations are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    /// Those on mappings.
    Mappings,
    /// And dirty logs.
    Logs,
}

fn ranges(middle: u64, units: Units) -> impl Strategy<Value = IpaRange> {
    let Units { page: bytes, pages_run, block, blocks_run, near, .. } = units;
    let (low, around) = (middle - 10 * block, middle - near / 2 * bytes);
    let pages = block / bytes;
    prop_oneof![
        // Pages in one of a few blocks around the middle.
        24 => (0..near, 1..64u64).prop_map(move |(page, n)| {
            let start = around + page * bytes;
            range(start, start + n * bytes)
        }),
        // Runs of pages.
        6 => (0..near * bytes / pages_run, 1..34u64).prop_map(move |(run, n)| range(around + run * pages_run, around + (run + n) * pages_run)),
        // Blocks.
        6 => (0..18u64, 1..8u64).prop_map(move |(first, n)| range(low + block * first, low + block * (first + n))),
        // Ragged edges far apart.
        3 => (1..pages - 1, 1..2 * pages).prop_map(move |(a, b)| {
            range(middle - 3 * block + a * bytes, middle - 2 * block + b * bytes)
        }),
        // Runs of blocks.
        1 => (0..2u64).prop_map(move |n| range(middle - blocks_run * n, middle - blocks_run * n + blocks_run)),
    ]
}

/// Now and then a whole GiB or two, or the largest leaves.
fn wide(middle: u64, units: Units) -> impl Strategy<Value = IpaRange> {
    let large = units.large;
    prop_oneof![
        60 => ranges(middle, units),
        1 => (0..3u64).prop_map(move |n| match n {
            0 => range(middle - large, middle),
            1 => range(middle, middle + large),
            _ => range(middle - large, middle + large),
        }),
    ]
}

fn permissions() -> impl Strategy<Value = Permissions> {
    use Permissions as P;
    let apart = prop_oneof![Just(Execute::El0), Just(Execute::El1)];
    prop_oneof![
        4 => Just(P::ALL),
        2 => Just(P::READ_EXECUTE),
        1 => Just(P::READ_WRITE),
        1 => Just(P::READ),
        1 => Just(P::NONE),
        2 => (apart, any::<bool>()).prop_map(|(execute, write)| P { execute, write, ..P::READ }),
    ]
}

fn attributes(machine: Machine) -> impl Strategy<Value = Attributes> {
    use MemoryType as M;
    // What can be said with FWB only, or without.
    let other = if machine.fwb() { M::Stage1 } else { M::WriteThrough };
    let memory =
        prop_oneof![Just(other), Just(M::NonCacheable), Just(M::DeviceNGnRnE), Just(M::DeviceNGRE), Just(M::DeviceGRE)];
    prop_oneof![
        1 => (memory, permissions()).prop_map(|(memory, permissions)| Attributes { memory, permissions }),
        6 => permissions().prop_map(|permissions| Attributes { permissions, ..Attributes::RAM }),
        1 => Just(Attributes::DEVICE),
    ]
}

/// Offset from IPA to output: mostly such that large leaves fit.
fn offset(units: Units) -> impl Strategy<Value = u64> {
    let Units { page, pages_run, block, high, .. } = units;
    let far = if high == 0 { 16 * GIB } else { high };
    prop_oneof![6 => Just(0), 2 => Just(far), 1 => Just(3 * block), 1 => Just(pages_run), 1 => Just(page)]
}

/// The offset, unless it would make so large a range one of pages that there are no tables for them all.
fn fitting(range: IpaRange, offset: u64, units: Units) -> u64 {
    let pages = !offset.is_multiple_of(units.block);
    if pages && range.bytes() > 1024 * units.block { 0 } else { offset }
}

/// Splits down to pages are kept to a few blocks: each costs 512 descriptors a block or more, in every later operation too.
fn splits(middle: u64, units: Units) -> impl Strategy<Value = Op> {
    let most = units.near * units.page * 3 / 16;
    use LeafSize as L;
    let low = prop_oneof![3 => Just(L::Page), 2 => Just(L::Contiguous64K)];
    let high = prop_oneof![2 => Just(L::Block2M), 1 => Just(L::Contiguous32M)];
    prop_oneof![
        3 => (ranges(middle, units), low).prop_map(move |(r, size)| {
            let end = r.end().0.min(r.start().0 + most);
            Op::Split(range(r.start().0, end), size)
        }),
        2 => (ranges(middle, units), high).prop_map(|(r, size)| Op::Split(r, size)),
    ]
}

fn changes(middle: u64, units: Units) -> impl Strategy<Value = Op> {
    let split = splits(middle, units).prop_map(|op| match op {
        Op::Split(range, size) => Change::Split(range, size),
        _ => unreachable!("a split"),
    });
    let protect = (ranges(middle, units), permissions()).prop_map(|(r, p)| Change::Protect(r, p));
    prop::collection::vec(prop_oneof![4 => protect, 1 => split], 2..8).prop_map(Op::Batch)
}

fn accesses() -> impl Strategy<Value = Op> {
    let access = prop_oneof![1 => Just(Access::Read), 3 => Just(Access::Write), 1 => Just(Access::Execute), 1 => Just(Access::ExecuteAtEl0)];
    (0..2u8, 0..VIRTUAL, access).prop_map(|(pe, n, access)| Op::Access(pe, n, access))
}

fn pages(middle: u64, units: Units) -> impl Strategy<Value = u64> {
    let Units { page: bytes, near, .. } = units;
    (0..near).prop_map(move |page| middle - near / 2 * bytes + page * bytes)
}

/// One operation.
pub fn operation<G: Granule>(machine: Machine, mix: Mix) -> BoxedStrategy<Op> {
    let (m, u) = (machine.middle::<G>(), units::<G>());
    let mappings = prop_oneof![
        5 => (wide(m, u), offset(u), attributes(machine)).prop_map(move |(r, o, a)| Op::Map(r, fitting(r, o, u), a)),
        3 => wide(m, u).prop_map(Op::Unmap),
        8 => (ranges(m, u), permissions()).prop_map(|(r, p)| Op::Protect(r, p)),
        8 => splits(m, u),
        8 => wide(m, u).prop_map(Op::Collapse),
        2 => changes(m, u),
        4 => pages(m, u).prop_map(Op::Store),
        2 => (0..VIRTUAL, pages(m, u), any::<bool>()).prop_map(|(n, ipa, told)| Op::Remap(n, ipa, told)),
        4 => accesses(),
        1 => pages(m, u).prop_map(Op::Spurious),
    ];
    if mix == Mix::Mappings {
        return mappings.boxed();
    }
    let noise = prop_oneof![Just(0), Just(u64::MAX), any::<u64>()];
    let mechanism = if machine.hardware_dirty {
        prop_oneof![Just(Mechanism::HardwarePage), Just(Mechanism::HardwareBlock), Just(Mechanism::WriteProtect)]
            .boxed()
    } else {
        Just(Mechanism::WriteProtect).boxed()
    };
    prop_oneof![
        24 => mappings,
        4 => (ranges(m, u), mechanism.clone(), any::<bool>()).prop_map(|(r, m, a)| Op::Start(r, m, a)),
        2 => (1..64u64, mechanism, any::<bool>()).prop_map(|(n, m, a)| Op::Beside(n, m, a)),
        12 => pages(m, u).prop_map(Op::Store),
        3 => any::<usize>().prop_map(Op::Harvest),
        2 => (any::<usize>(), noise).prop_map(|(n, noise)| Op::HarvestInto(n, noise)),
        1 => any::<usize>().prop_map(Op::Peek),
        3 => (any::<usize>(), prop::collection::vec(pages(m, u), 1..40)).prop_map(|(n, p)| Op::Clear(n, p)),
        2 => (any::<usize>(), prop::collection::vec(pages(m, u), 1..40)).prop_map(|(n, p)| Op::ClearFrom(n, p)),
        1 => any::<usize>().prop_map(Op::Stop),
        1 => any::<usize>().prop_map(Op::End),
        1 => Just(Op::FreezeAndThaw),
    ]
    .boxed()
}

/// A run of up to twice `count` operations, and that many on average.
pub fn operations<G: Granule>(machine: Machine, mix: Mix, count: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(operation::<G>(machine, mix), 1..2 * count)
}
