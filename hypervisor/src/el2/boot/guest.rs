//! Loading the guest: kernel, initramfs, device tree.

use crate::el2::base::{cpu, device, firmware, own_map::OwnMemory, refusal::Refusal, registers, totals};
use crate::el2::boot::{el2_setup, secondary};
use crate::el2::{crash, manager};
use alloc::vec::Vec;
use hypervisor::guest_tree;
use hypervisor::image::{self, Request};
use hypervisor::machine::{Machine, Module};
use hypervisor::options::{Crash, Options};
use hypervisor::range::PhysRange;

/// A guest that is ready to start.
pub struct Guest {
    /// Its RAM.
    pub memory: Vec<PhysRange>,
    crash: Option<Crash>,
    /// Whether the first CPU starts in it. It does not where all CPUs start when the guest has been read.
    starts: bool,
}

/// What the guest's memory is to be, where it goes on from what was saved.
pub fn to_resume(machine: &Machine, options: &Options, own: &OwnMemory) -> Guest {
    let memory = machine.guest_memory(own.range);
    log::info!("guest: one that was saved; it starts when the management core has it");
    log::info!("hypervisor: memory at {}, {} KiB of it for tables", own.range, own.pool.size() >> 10);
    totals::count_instructions(options.icount);
    Guest { memory, crash: options.crash, starts: false }
}

/// Puts everything where it belongs, and the first CPU's entry into its power state.
///
/// # Errors
///
/// A sentence: a kernel that cannot be started, or that there is no room for.
pub fn load(machine: &Machine, options: &Options, own: &OwnMemory) -> Result<Guest, Refusal> {
    let memory = machine.guest_memory(own.range);

    let module = machine.kernel()?;
    for Module { name, range, .. } in [Some(module), machine.initrd.as_ref()].into_iter().flatten() {
        answers(&alloc::format!("the module {name}"), *range)?;
    }
    // SAFETY: `check_placement` has found the module in RAM, apart from everything else; RAM is mapped.
    let kernel = image::examine(unsafe { bytes(module.range) })?;
    let initrd = machine.initrd.as_ref().map(|initrd| initrd.range);
    let plan = image::plan(&Request { kernel, kernel_file: module.range, initrd, guest_ram: &memory })?;

    let ids: Vec<_> = cpu::all().filter_map(|area| area.cpu.id.get()).collect();
    let first = cpu::read_id().affinity();
    let mut cpus = Vec::from([first]);
    let withheld = manager::withheld(machine, options);
    cpus.extend(ids.iter().map(|id| id.affinity()).filter(|&mpidr| mpidr != first && Some(mpidr) != withheld));
    let transports = [&options.grant_dma[..], &options.mediate[..]].concat();
    let tree = guest_tree::write(
        machine,
        &guest_tree::Guest {
            memory: &memory,
            cpus: &cpus,
            bootargs: module.bootargs.as_deref(),
            initrd: plan.initrd,
            pmu: ids.iter().all(|id| id.pmu_version().is_some()),
            granted: &transports,
        },
    )?;
    let room = plan.device_tree;
    if tree.len() as u64 > room.size() {
        return Err(Refusal(alloc::format!(
            "the guest's device tree takes {} bytes, more than {}",
            tree.len(),
            room.size()
        )));
    }

    let places = plan.moves.iter().filter_map(|copy| PhysRange::with_size(copy.to, copy.from.size()));
    places.chain([room]).try_for_each(|place| answers("the place for the guest", place))?;
    for copy in &plan.moves {
        let size = copy.from.size() as usize;
        // SAFETY: both lie in RAM that is mapped and the guest's, and the plan's order lets no copy overwrite what a
        // later one reads.
        unsafe { core::ptr::copy(copy.from.start() as *const u8, copy.to as *mut u8, size) };
    }
    // SAFETY: the room is the guest's RAM, large enough, and the plan keeps it clear of everything else.
    unsafe { core::ptr::copy_nonoverlapping(tree.as_ptr(), room.start() as *mut u8, tree.len()) };
    // The guest starts with its caches off. What was not moved may still be in the cache of the CPU that loaded it, and a
    // dirty line of what lies behind the kernel's file, its BSS, would overwrite what the guest stores there.
    let tree = PhysRange::with_size(room.start(), tree.len() as u64);
    for range in [Some(plan.kernel), plan.initrd, tree].into_iter().flatten() {
        registers::clean_to_memory(range.start() as usize, range.size() as usize);
    }
    registers::invalidate_instruction_caches();

    log::info!("guest: kernel at {}, entered at {:#x}, device tree at {:#x}", plan.kernel, plan.entry, room.start());
    if let Some(initrd) = plan.initrd {
        log::info!("guest: initramfs at {initrd}");
    }
    log::info!("hypervisor: memory at {}, {} KiB of it for tables", own.range, own.pool.size() >> 10);
    // The first CPU was off so far, in the guest's eyes: this cannot fail.
    let _ = cpu::this_cpu().power.turn_on(plan.entry, room.start());
    totals::count_instructions(options.icount);
    Ok(Guest { memory, crash: options.crash, starts: true })
}

/// Whether EL2 reaches all of this memory, which the device tree says is there.
fn answers(what: &str, range: PhysRange) -> Result<(), Refusal> {
    // SAFETY: RAM by the tree, that nobody else uses.
    let Some(at) = (unsafe { device::silent_part(range) }) else { return Ok(()) };
    Err(Refusal(alloc::format!(
        "{what} at {range} is not reached at {at:#x}: there is no memory, or it shares a page of 4 KiB with what firmware keeps or \
         with RAM's end; load it elsewhere, or correct the device tree's memory"
    )))
}

/// The bytes of `range`.
///
/// # Safety
///
/// They are mapped, and nobody writes them while the slice lives.
unsafe fn bytes<'a>(range: PhysRange) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(range.start() as *const u8, range.size() as usize) }
}

impl Guest {
    /// Starts it on the executing CPU.
    pub fn enter(self) -> ! {
        if let Some(kind) = self.crash {
            crash::on_purpose(kind);
        }
        let starts = self.starts;
        drop(self);
        el2_setup::apply();
        manager::start();
        if !starts {
            // Like all others it is off until the guest is there.
            firmware::turn_off();
            firmware::refuse("the firmware does not turn the first CPU off, as resume=on needs");
        }
        let (entry, context) = cpu::this_cpu().power.turned_on();
        secondary::enter(entry, context)
    }
}
