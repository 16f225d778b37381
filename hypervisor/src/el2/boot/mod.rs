//! From the first Rust code to the guest's first instruction.

mod efi;
pub mod el2_setup;
pub mod guest;
mod moving;
pub mod secondary;

use crate::el2::base::{console, cpu, device, firmware, frames, heap, own_map, refusal::Refusal, totals};
use crate::el2::saving::store;
use crate::el2::{guest_memory, manager, mediation, saving};
use alloc::string::ToString;
use core::arch::global_asm;
use core::sync::atomic::Ordering::Relaxed;
use hypervisor::guest_tree::DEFAULT_CLOCK_HZ;
use hypervisor::machine::{Conduit, GuestRegisters, Machine, Needs, Uart, find_uart};
use hypervisor::options::Options;
use hypervisor::range::PhysRange;
use hypervisor::tree::Tree;
use hypervisor::tree_check::{self, CheckedTree};
use hypervisor::uart::Kind;
use log::LevelFilter;
use stage2::Features;
use stage2::features::ConflictAborts;

global_asm!(
    include_str!("boot.S"),
    vectors = sym crate::el2::exits::vectors,
    boot_area = sym cpu::BOOT_AREA,
    stack_top = const cpu::CpuArea::STACK_TOP,
    early_tables = sym own_map::EARLY_TABLES,
    fill_early_tables = sym own_map::fill_early_tables,
    root_table = sym own_map::ROOT_TABLE,
    primary_main = sym primary_main,
    secondary_main = sym secondary::main,
    wrong_exception_level = sym wrong_exception_level,
);

/// The first Rust code at EL2, on the first CPU, with the MMU on. `tree` is what the loader left in x0, `image` where
/// the image begins.
extern "C" fn primary_main(tree: u64, image: u64) -> ! {
    heap::init();
    // Where image and tree are is RAM: no UART is looked for in the same gibibyte.
    let near = |address: u64| address >> 30 == console::LAST_RESORT.address >> 30;
    if !near(image) && (tree == 0 || !near(tree)) && own_map::early_map_device(console::LAST_RESORT.address) {
        // SAFETY: the early map has it as device memory. Where it is no PL011, the machine is not one that the image
        // can say anything on yet.
        unsafe { console::open(console::LAST_RESORT) };
    }
    console::log_up_to(LevelFilter::Info);
    cpu::this_cpu().enter_el2();
    match start(tree, image) {
        Ok(guest) => guest.enter(),
        Err(Refusal(reason)) => firmware::refuse(reason),
    }
}

/// Everything up to the guest.
fn start(tree: u64, image: u64) -> Result<guest::Guest, Refusal> {
    let mut phases = totals::Phases::begin();
    let (tree, tree_range) = read_tree(tree)?;
    match find_uart(&tree) {
        // SAFETY: the tree says that it is there, and it has just been mapped.
        Some(uart) if own_map::early_map_device(uart.address) => unsafe { console::open(uart) },
        _ => console::close(),
    }
    let mut machine = Machine::read(&tree)?;
    let options = Options::parse(&machine.bootargs)?;
    console::log_up_to(options.log);
    let needs = own_memory_needs(&machine, &options, tree_range);
    // Before it moves: what was loaded over the image is over it no more then.
    machine.check_placement(needs.image, tree_range)?;
    phases.end("tree");
    let place = moving::settle(&machine, &needs);
    phases.before("loaded image", cpu::this_cpu().entered_at.load(Relaxed));
    log::info!("Unbroken {}, image at {image:#x}", env!("CARGO_PKG_VERSION"));
    place.tell(&machine, &needs);
    machine.notes.iter().for_each(|note| log::info!("{note}"));
    if machine.psci != Conduit::Smc {
        return Err(Refusal(
            "PSCI is called by HVC here, which at EL2 calls EL2 itself: start the image on a machine, or in a \
             hypervisor, whose device tree says method = \"smc\""
                .to_string(),
        ));
    }

    let mut registers = GuestRegisters::new(&machine, &options.grant_dma)?;
    registers.mediate(&machine, &options.mediate)?;
    let device = manager::find_device(&machine, &options)?;
    let store = store::find(&machine, &options)?;
    let own = own_map::OwnMemory::of_image(&machine, &needs);
    machine.check_placement(own.range, tree_range)?;
    if !own_map::early_map_memory(own.pool) {
        return Err(Refusal(alloc::format!("the hypervisor's memory at {} cannot be reached so early", own.pool)));
    }
    // SAFETY: the early map has the pool, which has been found to belong to nothing else.
    unsafe { frames::FRAMES.init(own.pool) };
    secondary::allocate_areas(&machine)?;
    own_map::switch_to_own_map(&machine, &own, [device, store], &registers)?;
    phases.end("own memory");
    place.clear_old(&machine, own.range);
    phases.end("old image");
    if let Some(uart) = &machine.uart {
        // SAFETY: the tree says that it is there, and the own map has it, even where the early one could not.
        unsafe { console::open(uart.port) };
    }
    find_clock(&mut machine);

    let features = secondary::start_all(&machine)?;
    secondary::settle(&options);
    el2_setup::check(&machine)?;
    phases.end("CPUs");
    let guest = if options.resume {
        guest::to_resume(&machine, &options, &own)
    } else {
        guest::load(&machine, &options, &own)?
    };
    phases.end("guest's kernel and tree");
    guest_memory::create::create(&machine, &options, &guest.memory, features, registers)?;
    phases.end("guest's tables");
    mediation::prepare(&machine, &options)?;
    manager::prepare(&machine, &options, &guest.memory, device, store)?;
    saving::prepare(&machine, &options, manager::withheld(&machine, &options));
    phases.end("services");
    phases.tell();
    Ok(guest)
}

/// Finds what the guest is told of the UART's clock, where the device tree names no fixed one.
fn find_clock(machine: &mut Machine) {
    let unknown = |uart: &&mut Uart| uart.clock_hz.is_none() && uart.port.kind != Kind::Sbsa;
    let Some(uart) = machine.uart.as_mut().filter(unknown) else { return };
    let speed = uart.speed();
    uart.clock_hz = console::clock_hz(speed);
    match uart.clock_hz {
        Some(rate) => log::info!("console: a clock of {rate} Hz for the guest, by the divisor that makes {speed} baud"),
        None => log::info!(
            "console: its clock is known neither from the device tree nor from a divisor that firmware has set; the guest is told \
             {DEFAULT_CLOCK_HZ} Hz (clock-frequency in the UART's node says another)"
        ),
    }
}

/// What the hypervisor's own memory is chosen for.
fn own_memory_needs(machine: &Machine, options: &Options, tree: PhysRange) -> Needs {
    let features = Features::from_id_registers(&cpu::read_id().stage2(), ConflictAborts::Handled);
    let pool = machine.pool_bytes(options.wants_manager(), guest_memory::events::BYTES);
    Needs { image: own_map::image(), pool, tree, pa_bits: features.pa_bits }
}

const NO_MEMORY: &str = "there is no memory where it should be, or where it says that it ends";

/// The device tree at `address`, and where it lies.
fn read_tree(address: u64) -> Result<(CheckedTree, PhysRange), Refusal> {
    let no_tree = |why: &str| {
        Refusal(alloc::format!(
            "no device tree: {why}; start the image as an arm64 Image, with the address of a device tree in x0 \
             (QEMU: -kernel with the raw Image, not the ELF file)"
        ))
    };
    if address == 0 {
        return Err(no_tree("x0 is 0"));
    }
    let is_reached = |bytes: u64| PhysRange::with_size(address, bytes).is_some_and(own_map::early_map_memory);
    if !address.is_multiple_of(8) || !is_reached(8) {
        return Err(no_tree(&alloc::format!("x0 is {address:#x}, which is not a multiple of 8 in reach")));
    }
    // SAFETY: the early map has the 8 bytes, which the loader says are a tree's.
    let header = unsafe { device::load(address, 8) }.ok_or_else(|| no_tree(NO_MEMORY))?.to_le_bytes();
    let in_tree = |error| Refusal(alloc::format!("the device tree at {address:#x} cannot be used: {error}"));
    let size = tree_check::total_size(header).map_err(in_tree)?;
    if !is_reached(size as u64) {
        return Err(no_tree("it runs over the end of what the image can reach so early"));
    }
    let range = PhysRange::with_size(address, size as u64).ok_or_else(|| no_tree("it wraps round"))?;
    // The heap is in the image: what is read there would change meanwhile.
    if range.overlaps(own_map::image()) {
        let image = own_map::image();
        return Err(no_tree(&alloc::format!(
            "the one at {range} lies over the hypervisor at {image}: load it elsewhere"
        )));
    }
    // SAFETY: the early map has all of it.
    if unsafe { device::silent_part(range) }.is_some() {
        return Err(no_tree(NO_MEMORY));
    }
    // SAFETY: the early map has all of it, and nothing writes there while it is read.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, size) };
    CheckedTree::new(bytes).map_err(in_tree).map(|tree| (tree, range))
}

/// The image was started at EL1 or EL3, with MMU and caches off.
///
/// The heap's lock needs exclusive accesses, which memory without caches need not support: where it does not, the CPU
/// parks without a word.
extern "C" fn wrong_exception_level(tree: u64, level: u64) -> ! {
    heap::init();
    // SAFETY: with the MMU off every address is reached; the loader says that a tree is there.
    let tree = unsafe { tree_bytes(tree) }.and_then(|bytes| CheckedTree::new(bytes).ok());
    let uart = tree.as_ref().and_then(find_uart).unwrap_or(console::LAST_RESORT);
    // SAFETY: the tree says that it is there, or else it is the last resort.
    unsafe { console::open(uart) };
    console::print(format_args!(
        "refused: started at EL{level}, but this hypervisor needs EL2: give the CPU its virtualization extensions \
         (QEMU: -M virt,virtualization=on) and start the image at EL2"
    ));
    console::print(format_args!("end: {}", firmware::End::Refused.name()));

    let tree = tree.as_ref().map(Tree::open);
    let method = tree.as_ref().and_then(|tree| tree.root()?.child("psci")?.string("method"));
    // An instruction that is undefined here parks the CPU, as does a PSCI that refuses.
    let _ = match (level, method) {
        (1, Some("hvc")) => smccc::psci::system_off::<smccc::Hvc>(),
        (1, Some("smc")) => smccc::psci::system_off::<smccc::Smc>(),
        _ => Ok(()),
    };
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// The bytes of the device tree at `address`, if there may be one.
///
/// # Safety
///
/// What lies at `address` can be read, as far as the header there says.
unsafe fn tree_bytes<'a>(address: u64) -> Option<&'a [u8]> {
    if address == 0 || !address.is_multiple_of(8) {
        return None;
    }
    // SAFETY: the caller's promise; the address is aligned.
    let header = unsafe { core::ptr::read(address as *const [u8; 8]) };
    let size = tree_check::total_size(header).ok()?;
    // SAFETY: the caller's promise; nothing writes there.
    Some(unsafe { core::slice::from_raw_parts(address as *const u8, size) })
}
