//! Random operations, weighted towards what is difficult: edges of leaves, and the same few blocks again and again.

use super::{GIB, MIB, Machine, range};
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

fn ranges(middle: u64) -> impl Strategy<Value = IpaRange> {
    let low = middle - 20 * MIB;
    prop_oneof![
        // Pages in one of a few blocks around the middle.
        24 => (0..4096u64, 1..64u64).prop_map(move |(page, n)| {
            let start = middle - 8 * MIB + page * PAGE_SIZE;
            range(start, start + n * PAGE_SIZE)
        }),
        // Runs of sixteen pages.
        6 => (0..256u64, 1..34u64).prop_map(move |(run, n)| range(middle - 8 * MIB + (run << 16), middle - 8 * MIB + ((run + n) << 16))),
        // Blocks.
        6 => (0..18u64, 1..8u64).prop_map(move |(block, n)| range(low + 2 * MIB * block, low + 2 * MIB * (block + n))),
        // Ragged edges far apart.
        3 => (1..511u64, 1..1024u64).prop_map(move |(a, b)| {
            range(middle - 6 * MIB + a * PAGE_SIZE, middle - 4 * MIB + b * PAGE_SIZE)
        }),
        // Runs of sixteen blocks.
        1 => (0..2u64).prop_map(move |n| range(middle - 32 * MIB * n, middle - 32 * MIB * n + 32 * MIB)),
    ]
}

/// Now and then a whole GiB or two.
fn wide(middle: u64) -> impl Strategy<Value = IpaRange> {
    prop_oneof![
        60 => ranges(middle),
        1 => (0..3u64).prop_map(move |n| match n {
            0 => range(middle - GIB, middle),
            1 => range(middle, middle + GIB),
            _ => range(middle - GIB, middle + GIB),
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
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(0), 2 => Just(16 * GIB), 1 => Just(6 * MIB), 1 => Just(64 << 10), 1 => Just(PAGE_SIZE)]
}

/// Splits down to pages are kept to a few blocks: each costs 512 descriptors a block, in every later operation too.
fn splits(middle: u64) -> impl Strategy<Value = Op> {
    use LeafSize as L;
    let low = prop_oneof![3 => Just(L::Page), 2 => Just(L::Contiguous64K)];
    let high = prop_oneof![2 => Just(L::Block2M), 1 => Just(L::Contiguous32M)];
    prop_oneof![
        3 => (ranges(middle), low).prop_map(|(r, size)| {
            let end = r.end().0.min(r.start().0 + 3 * MIB);
            Op::Split(range(r.start().0, end), size)
        }),
        2 => (ranges(middle), high).prop_map(|(r, size)| Op::Split(r, size)),
    ]
}

fn changes(middle: u64) -> impl Strategy<Value = Op> {
    let split = splits(middle).prop_map(|op| match op {
        Op::Split(range, size) => Change::Split(range, size),
        _ => unreachable!("a split"),
    });
    let protect = (ranges(middle), permissions()).prop_map(|(r, p)| Change::Protect(r, p));
    prop::collection::vec(prop_oneof![4 => protect, 1 => split], 2..8).prop_map(Op::Batch)
}

fn accesses() -> impl Strategy<Value = Op> {
    let access = prop_oneof![1 => Just(Access::Read), 3 => Just(Access::Write), 1 => Just(Access::Execute), 1 => Just(Access::ExecuteAtEl0)];
    (0..2u8, 0..VIRTUAL, access).prop_map(|(pe, n, access)| Op::Access(pe, n, access))
}

fn pages(middle: u64) -> impl Strategy<Value = u64> {
    (0..4096u64).prop_map(move |page| middle - 8 * MIB + page * PAGE_SIZE)
}

/// One operation.
pub fn operation(machine: Machine, mix: Mix) -> BoxedStrategy<Op> {
    let m = machine.middle();
    let mappings = prop_oneof![
        5 => (wide(m), offset(), attributes(machine)).prop_map(|(r, o, a)| Op::Map(r, o, a)),
        3 => wide(m).prop_map(Op::Unmap),
        8 => (ranges(m), permissions()).prop_map(|(r, p)| Op::Protect(r, p)),
        8 => splits(m),
        8 => wide(m).prop_map(Op::Collapse),
        2 => changes(m),
        4 => pages(m).prop_map(Op::Store),
        2 => (0..VIRTUAL, pages(m), any::<bool>()).prop_map(|(n, ipa, told)| Op::Remap(n, ipa, told)),
        4 => accesses(),
        1 => pages(m).prop_map(Op::Spurious),
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
        4 => (ranges(m), mechanism.clone(), any::<bool>()).prop_map(|(r, m, a)| Op::Start(r, m, a)),
        2 => (1..64u64, mechanism, any::<bool>()).prop_map(|(n, m, a)| Op::Beside(n, m, a)),
        12 => pages(m).prop_map(Op::Store),
        3 => any::<usize>().prop_map(Op::Harvest),
        2 => (any::<usize>(), noise).prop_map(|(n, noise)| Op::HarvestInto(n, noise)),
        1 => any::<usize>().prop_map(Op::Peek),
        3 => (any::<usize>(), prop::collection::vec(pages(m), 1..40)).prop_map(|(n, p)| Op::Clear(n, p)),
        2 => (any::<usize>(), prop::collection::vec(pages(m), 1..40)).prop_map(|(n, p)| Op::ClearFrom(n, p)),
        1 => any::<usize>().prop_map(Op::Stop),
        1 => any::<usize>().prop_map(Op::End),
        1 => Just(Op::FreezeAndThaw),
    ]
    .boxed()
}

/// A run of up to twice `count` operations, and that many on average.
pub fn operations(machine: Machine, mix: Mix, count: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(operation(machine, mix), 1..2 * count)
}
