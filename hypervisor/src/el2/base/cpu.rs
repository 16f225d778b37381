//! What each CPU has of its own: state, counters and stacks.

use crate::el2::base::frames::FRAMES;
use crate::el2::base::registers::{read_register, write_register};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use hypervisor::cpu_id::CpuId;
use hypervisor::exit_counts::{Exit, ExitCounts, Totals};
use hypervisor::power_state::PowerState;
use hypervisor::reader_lock::Flag;
use spin::Once;
use stage2::{Counters, Event, FaultHistory, PAGE_SIZE};

const STACK_PAGES: usize = 8;
const EMERGENCY_PAGES: usize = 2;

/// One page of a stack, or one that nothing is mapped at.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

impl Page {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 4096]))
    }
}

/// A CPU's memory: its state, and two stacks that each grow down towards a page where nothing is mapped.
#[repr(C, align(4096))]
pub struct CpuArea {
    /// First, so that `TPIDR_EL2` points to both.
    pub cpu: PerCpu,
    emergency_guard: Page,
    emergency: [Page; EMERGENCY_PAGES],
    stack_guard: Page,
    stack: [Page; STACK_PAGES],
}

// SAFETY: `PerCpu` is `Sync`; the stacks are used by their own CPU alone.
unsafe impl Sync for CpuArea {}

impl CpuArea {
    /// From the area's start to the top of the normal stack.
    pub const STACK_TOP: usize = core::mem::offset_of!(CpuArea, stack) + STACK_PAGES * 4096;
    /// From the area's start to the top of the stack that crashes are reported on.
    pub const EMERGENCY_TOP: usize = core::mem::offset_of!(CpuArea, emergency) + EMERGENCY_PAGES * 4096;

    const fn new() -> Self {
        Self {
            cpu: PerCpu::new(),
            emergency_guard: Page::new(),
            emergency: [const { Page::new() }; EMERGENCY_PAGES],
            stack_guard: Page::new(),
            stack: [const { Page::new() }; STACK_PAGES],
        }
    }

    /// An area for one more CPU, or nothing when there is no memory left.
    pub fn allocate() -> Option<&'static Self> {
        let area: *mut Self = FRAMES.allocate((size_of::<Self>() as u64).div_ceil(PAGE_SIZE), 1)?.0 as *mut Self;
        // SAFETY: `area` points to frames that hold a whole area.
        let cpu = unsafe { &raw mut (*area).cpu };
        // SAFETY: the frames are this function's alone. Stacks may have any contents, so the state is all that needs to
        // be written.
        unsafe { cpu.write(PerCpu::new()) };
        // SAFETY: initialised above, never freed, and shared only from here on.
        Some(unsafe { &*area })
    }

    /// The addresses of the two pages below the stacks.
    pub fn guard_pages(&self) -> [usize; 2] {
        [self.emergency_guard.0.get().addr(), self.stack_guard.0.get().addr()]
    }

    /// The bounds of the normal stack.
    pub fn stack(&self) -> core::ops::Range<usize> {
        let top = core::ptr::from_ref(self).addr() + Self::STACK_TOP;
        top - STACK_PAGES * 4096..top
    }

    /// The bounds of the emergency stack.
    pub fn emergency_stack(&self) -> core::ops::Range<usize> {
        let top = core::ptr::from_ref(self).addr() + Self::EMERGENCY_TOP;
        top - EMERGENCY_PAGES * 4096..top
    }
}

/// What firmware had in `TPIDR_EL2`.
#[must_use]
pub struct Firmwares(u64);

impl CpuArea {
    /// Lets the executing CPU, which is firmware's as yet, find its area.
    pub fn lend(&'static self) -> Firmwares {
        let own = core::ptr::from_ref(self).expose_provenance() as u64;
        let firmwares;
        // SAFETY: the register holds an address for this image's code alone, which finds an area that is never freed.
        unsafe {
            core::arch::asm!(
                "mrs {}, tpidr_el2", "msr tpidr_el2, {}",
                out(reg) firmwares, in(reg) own, options(nomem, nostack, preserves_flags)
            );
        }
        Firmwares(firmwares)
    }
}

impl Firmwares {
    /// Puts it back: the CPU's area is not found any more.
    pub fn restore(self) {
        // SAFETY: what firmware had there; only a panic would look for the area from here on.
        unsafe { core::arch::asm!("msr tpidr_el2, {}", in(reg) self.0, options(nomem, nostack, preserves_flags)) };
    }
}

/// The area of the CPU that the image is started on.
pub static BOOT_AREA: CpuArea = CpuArea::new();

/// A CPU's state. Written by the CPU itself unless a field says otherwise.
#[repr(C)]
pub struct PerCpu {
    /// Raised while the CPU reads the guest's table. First, as every fault takes its address.
    pub reading: Flag,
    /// CNTPCT_EL0 at the last exit; only with `icount=on`.
    pub entered_at: AtomicU64,
    /// CNTPCT_EL0 ticks that were spent at EL2; only with `icount=on`.
    pub el2_ticks: AtomicU64,
    /// Exits by kind, but for data aborts that were [`Event::FirstWrite`]: see [`PerCpu::exits`].
    pub exits: ExitCounts,
    /// The engine's events.
    pub stage2: Counters,
    /// What the engine remembers of the last abort; reached through [`fault_history`].
    fault_history: UnsafeCell<FaultHistory>,
    /// The guest's view of whether this CPU is on; written by all CPUs.
    pub power: PowerState,
    /// What the ID registers say; set when the CPU first arrives at EL2.
    pub id: Once<CpuId>,
    /// What the guest's memory is known by, once this CPU has noted it; the floor above knows its type.
    pub guest_memory: AtomicPtr<()>,
    /// Crashes that the CPU reports: a crash in the report ends it.
    pub crashes: AtomicU32,
}

// SAFETY: the one field that is not `Sync` is used by its own CPU alone, in `fault_history`.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    const fn new() -> Self {
        Self {
            entered_at: AtomicU64::new(0),
            el2_ticks: AtomicU64::new(0),
            exits: ExitCounts::new(),
            stage2: Counters::new(),
            fault_history: UnsafeCell::new(FaultHistory::new()),
            power: PowerState::new(),
            id: Once::new(),
            reading: Flag(AtomicUsize::new(0)),
            guest_memory: AtomicPtr::new(core::ptr::null_mut()),
            crashes: AtomicU32::new(0),
        }
    }

    /// Exits so far, by kind.
    pub fn exits(&self) -> Totals {
        self.exits.snapshot().with(Exit::DataAbort, self.stage2.get(Event::FirstWrite))
    }

    /// Begins an interval of time at EL2.
    pub fn enter_el2(&self) {
        self.entered_at.store(read_register!("cntpct_el0"), Relaxed);
    }

    /// Ends it.
    pub fn leave_el2(&self) {
        let ticks = read_register!("cntpct_el0").wrapping_sub(self.entered_at.load(Relaxed));
        self.el2_ticks.store(self.el2_ticks.load(Relaxed).wrapping_add(ticks), Relaxed);
    }
}

/// The executing CPU's memory of its last abort. (No closure is given it: one that two handlers use is not inlined.)
///
/// # Safety
///
/// One abort at a time has it: it is not asked for again while the reference is in use. Exceptions do not nest at EL2.
#[inline(always)]
pub unsafe fn fault_history() -> &'static mut FaultHistory {
    // SAFETY: only this CPU reaches its own history, and the caller promises that it has no other reference.
    unsafe { &mut *this_cpu().fault_history.get() }
}

/// The executing CPU has nothing to do before another one has done something. YIELD first: an emulator that runs its CPUs in turn, as QEMU
/// does when it counts instructions, goes over to the one that is waited for.
#[inline(always)]
pub fn pause() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
    core::hint::spin_loop();
}

/// The state of the CPU that executes this.
#[inline(always)]
pub fn this_cpu() -> &'static PerCpu {
    &this_area().cpu
}

/// The area of the CPU that executes this.
#[inline(always)]
pub fn this_area() -> &'static CpuArea {
    let area: *const CpuArea;
    // SAFETY: reading the register has no effect, and it never changes: the compiler may read it once for many uses.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el2", out(reg) area, options(pure, nomem, nostack, preserves_flags));
    }
    // SAFETY: boot.S, and `lend` under firmware, set TPIDR_EL2 to the CPU's area before any code that asks for it runs;
    // nothing changes it but the way back to firmware. Areas live for ever.
    unsafe { &*area }
}

/// All CPUs of the machine, in the device tree's order, once they are known.
static AREAS: Once<alloc::vec::Vec<&'static CpuArea>> = Once::new();

/// Makes `areas` known to all CPUs.
pub fn set_all(areas: alloc::vec::Vec<&'static CpuArea>) {
    AREAS.call_once(|| areas);
}

/// All CPUs of the machine; before they are known, the one that executes this.
pub fn all() -> impl Iterator<Item = &'static CpuArea> {
    let (known, first) = match AREAS.get() {
        Some(areas) => (areas.as_slice(), None),
        None => (&[][..], Some(this_area())),
    };
    known.iter().copied().chain(first)
}

/// Reads everything that [`CpuId`] has from the executing CPU.
pub fn read_id() -> CpuId {
    let id = CpuId {
        midr: read_register!("midr_el1"),
        mpidr: read_register!("mpidr_el1"),
        pfr0: read_register!("id_aa64pfr0_el1"),
        pfr1: read_register!("id_aa64pfr1_el1"),
        zfr0: read_register!("S3_0_C0_C4_4"),
        smfr0: read_register!("S3_0_C0_C4_5"),
        dfr0: read_register!("id_aa64dfr0_el1"),
        isar0: read_register!("id_aa64isar0_el1"),
        isar1: read_register!("id_aa64isar1_el1"),
        isar2: read_register!("S3_0_C0_C6_2"),
        mmfr0: read_register!("id_aa64mmfr0_el1"),
        mmfr1: read_register!("id_aa64mmfr1_el1"),
        mmfr2: read_register!("S3_0_C0_C7_2"),
    };
    id.without_errata()
}

/// Makes the guest see this CPU's own identification (D24.2.190, D24.2.193).
pub fn show_identity(id: &CpuId) {
    write_register!("vpidr_el2", id.midr);
    write_register!("vmpidr_el2", id.mpidr);
}

/// Whether the guest's GIC is a GICv3, used through system registers.
pub static GIC_REGISTERS: AtomicBool = AtomicBool::new(false);

/// Whether the guest's GIC is used through system registers.
pub fn has_gic_registers() -> bool {
    GIC_REGISTERS.load(Relaxed)
}
