//! The same work done by other crates, as far as they can. What they can't do, the tool says (qemu/src/bench/native.rs).

use aarch64_paging::descriptor::{Descriptor, Stage2Attributes};
use aarch64_paging::linearmap::LinearMap;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2};
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::{GenericPTE, MappingFlags, PageSize, PagingHandler};
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::hint::black_box;

const GIB: usize = 1 << 30;
const PAGE: usize = 4096;

const AARCH64_PAGING: &str = "aarch64-paging";
const MULTIARCH: &str = "page_table_multiarch";

type Paging = LinearMap<Stage2>;

/// Memory as the engine maps it, and write-protected.
const RAM: Stage2Attributes = PROTECTED.union(Stage2Attributes::S2AP_ACCESS_WO);
const PROTECTED: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB)
    .union(Stage2Attributes::S2AP_ACCESS_RO)
    .union(Stage2Attributes::SH_INNER)
    .union(Stage2Attributes::ACCESS_FLAG);

/// Pages of 1 GiB.
const PAGES: usize = GIB / PAGE;

fn region(bytes: usize) -> MemoryRegion {
    MemoryRegion::new(0, bytes)
}

/// `bytes` mapped in the largest leaves.
fn paging(bytes: usize) -> Paging {
    let mut map = Paging::new(1, 0, Stage2);
    map.map_range(&region(bytes), RAM).expect("the range is good");
    map
}

/// Makes all leaves pages, in tables that no CPU uses, and protects them: a block whose attributes stay as they are is not
/// split.
fn split_paging(map: &mut Paging, bytes: usize) {
    map.map_range_with_constraints(&region(bytes), PROTECTED, Constraints::NO_BLOCK_MAPPINGS)
        .expect("the range is good");
}

/// The leaves that can be written, and all leaves.
fn count_paging(map: &Paging) -> (usize, usize) {
    let (mut writable, mut all) = (0, 0);
    let mut look = |_: &MemoryRegion, entry: &Descriptor<Stage2Attributes>, _: usize| {
        writable += usize::from(entry.flags().contains(Stage2Attributes::S2AP_ACCESS_WO));
        all += 1;
        Ok(())
    };
    map.walk_range(&region(GIB), &mut look).expect("the range is good");
    (writable, all)
}

/// Frames from the heap; the crate's handler has no state of its own.
struct Heap;

fn layout(frames: usize) -> Layout {
    Layout::from_size_align(frames * PAGE, PAGE).expect("whole frames are a layout")
}

impl PagingHandler for Heap {
    fn alloc_frames(frames: usize, _: usize) -> Option<PhysAddr> {
        // SAFETY: the layout is not empty.
        let frame = unsafe { alloc(layout(frames)) };
        (!frame.is_null()).then(|| PhysAddr::from(frame.expose_provenance()))
    }

    fn dealloc_frames(frame: PhysAddr, frames: usize) {
        // SAFETY: it comes from `alloc_frames`, and the crate gives it back once.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(frame.as_usize()), layout(frames)) };
    }

    fn phys_to_virt(frame: PhysAddr) -> VirtAddr {
        VirtAddr::from(frame.as_usize())
    }
}

/// The crate's table for the host's own architecture: the others' need their instructions. Four levels of 512 entries of
/// 64 bits, as the stage-2 table has three.
#[cfg(target_arch = "x86_64")]
type Multiarch = page_table_multiarch::x86_64::X64PageTable<Heap>;
#[cfg(target_arch = "aarch64")]
type Multiarch = page_table_multiarch::aarch64::A64PageTable<Heap>;

const FLAGS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE).union(MappingFlags::EXECUTE);

fn map_multiarch(table: &mut Multiarch, bytes: usize, huge: bool) {
    let identity = |address: VirtAddr| PhysAddr::from(address.as_usize());
    table.cursor().map_region(VirtAddr::from(0), identity, bytes, FLAGS, huge).expect("the range is good");
}

fn multiarch(bytes: usize, huge: bool) -> Multiarch {
    let mut table = Multiarch::try_new().expect("there is memory");
    map_multiarch(&mut table, bytes, huge);
    table
}

/// Maps 64 GiB.
pub fn map(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.bench_function(AARCH64_PAGING, |bencher| {
        bencher.iter_batched(|| (), |()| paging(64 * GIB), BatchSize::PerIteration);
    });
    group.bench_function(MULTIARCH, |bencher| {
        bencher.iter_batched(|| (), |()| multiarch(64 * GIB, true), BatchSize::PerIteration);
    });
}

/// Makes a block of 1 GiB pages.
pub fn split(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.bench_function(format!("{AARCH64_PAGING}, not live, and protected"), |bencher| {
        bencher.iter_batched_ref(|| paging(GIB), |map| split_paging(map, GIB), BatchSize::PerIteration);
    });
    group.bench_function(format!("{MULTIARCH}, unmapped and mapped again"), |bencher| {
        bencher.iter_batched_ref(
            || multiarch(GIB, true),
            |table| {
                table.cursor().unmap_region(VirtAddr::from(0), GIB).expect("it is mapped");
                map_multiarch(table, GIB, false);
            },
            BatchSize::PerIteration,
        );
    });
}

/// The leaves that can be written, and all leaves.
fn count_multiarch(table: &Multiarch) -> (usize, usize) {
    const LAST_LEVEL: usize = 3;
    let (writable, all) = (Cell::new(0), Cell::new(0));
    let look = |level: usize, _: usize, _: VirtAddr, entry: &_| {
        if level == LAST_LEVEL {
            writable.set(writable.get() + usize::from(GenericPTE::flags(entry).contains(MappingFlags::WRITE)));
            all.set(all.get() + 1);
        }
    };
    table.walk(512, Some(&look), None);
    (writable.get(), all.get())
}

/// Looks at all leaves of 1 GiB of pages, as a harvest of dirty state has to.
pub fn scan(group: &mut BenchmarkGroup<'_, WallTime>) {
    let mut map = paging(GIB);
    split_paging(&mut map, GIB);
    assert_eq!(count_paging(&map), (0, PAGES));
    group.bench_function(format!("{AARCH64_PAGING}, walk_range"), |bencher| {
        bencher.iter(|| count_paging(black_box(&map)));
    });
    let table = multiarch(GIB, false);
    assert_eq!(count_multiarch(&table), (PAGES, PAGES));
    group.bench_function(format!("{MULTIARCH}, walk"), |bencher| {
        bencher.iter(|| count_multiarch(black_box(&table)));
    });
}

/// Finds a page.
pub fn walk(group: &mut BenchmarkGroup<'_, WallTime>) {
    let mut map = paging(GIB);
    split_paging(&mut map, GIB);
    let page = MemoryRegion::new(0x3000, 0x4000);
    group.bench_function(AARCH64_PAGING, |bencher| {
        bencher.iter(|| {
            let mut found = 0;
            let mut look = |_: &MemoryRegion, entry: &Descriptor<Stage2Attributes>, _: usize| {
                found = entry.output_address().0;
                Ok(())
            };
            map.walk_range(black_box(&page), &mut look).expect("the range is good");
            found
        });
    });
    let table = multiarch(GIB, false);
    assert!(matches!(table.query(VirtAddr::from(0x3000)), Ok((_, _, PageSize::Size4K))));
    group.bench_function(MULTIARCH, |bencher| bencher.iter(|| table.query(black_box(VirtAddr::from(0x3000)))));
}
