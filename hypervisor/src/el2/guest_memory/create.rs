//! Makes the guest's table.

use crate::el2::base::refusal::Refusal;
use crate::el2::guest_memory::table_lock::{Table, TableLock};
use crate::el2::guest_memory::{GUEST_MEMORY, GuestMemory, events, gic, guest_logs::Logs, set_registers};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Release;
use hypervisor::machine::Machine;
use hypervisor::options::{Options, SizeChangeChoice};
use hypervisor::range::{PhysRange, merged};
use hypervisor_abi::events::{Call, Record};
use stage2::{
    Attributes, BbmLevel, Config, Error, Features, Ipa, IpaRange, LeafSize, PAGE_SIZE, PhysAddr, Stage2, Vmid,
};

/// Makes the table: the guest's RAM, the console, the clock, the GIC, and what was granted; nothing else.
///
/// # Errors
///
/// A sentence: a `bbm` that the CPUs cannot do, a grant of what is not there, a table that does not fit.
pub fn create(machine: &Machine, options: &Options, memory: &[PhysRange], features: Features) -> Result<(), Refusal> {
    let features = Features { bbm: size_change(options.bbm, features.bbm)?, ..features };
    let vmid = Vmid::new(1)?;
    // Without a management core or hypercalls nobody starts a log, and hardware need not look for leaves to mark.
    let hardware_dirty = options.wants_manager() || options.hypercalls;
    let uart = machine.uart.iter().map(|device| device.registers);
    let rtc = machine.rtc.iter().map(|device| device.registers);
    let granted = options.grant_dma.iter().map(|&address| grant(machine, address)).collect::<Result<Vec<_>, _>>()?;
    let devices = uart.chain(rtc).chain(gic::guest_registers(machine)).chain(granted);
    let devices = merged(devices.filter_map(|range| range.grown_to(PAGE_SIZE)).collect());
    let ipa_bits = ipa_bits(memory.iter().chain(&devices), features.pa_bits);
    let config = Config { hardware_dirty, ipa_bits, ..Config::new(vmid, features) };
    events::prepare();
    let mut table = events::fallible(Call::New, None, || Stage2::new(events::PLATFORM, config))?;
    let (vttbr, vtcr) = (table.vttbr(), table.vtcr());
    let root = (PhysAddr(vttbr & 0x0000_ffff_ffff_f000), table.geometry().root_tables());
    events::push(|| Record::attach(vmid.get(), ipa_bits, root.0.0));
    // TLBIs act on the VMID that VTTBR_EL2 holds; mapping may need some.
    set_registers(vttbr, vtcr);

    for &ram in memory {
        map(&mut table, ram, Attributes::RAM)?;
    }
    for &device in &devices {
        map(&mut table, device, Attributes::DEVICE)?;
    }

    report(&table);
    let mut ram =
        memory.iter().map(|ram| IpaRange::new(Ipa(ram.start()), Ipa(ram.end()))).collect::<Result<Vec<_>, _>>()?;
    // The largest is asked for most.
    ram.sort_unstable_by_key(|ram| core::cmp::Reverse(ram.bytes()));
    let memory = Box::new(GuestMemory {
        table: TableLock::new(table),
        services: options.hypercalls,
        logs: Logs::new(),
        vttbr,
        vtcr,
        root,
        ram,
    });
    // Release: who finds the pointer finds what is behind it.
    GUEST_MEMORY.store(Box::leak(memory), Release);
    Ok(())
}

/// Bits of IPA that reach everything that is mapped, so that a walk has no more levels than it needs: up to 39 bits it
/// begins at level 1, with one table. What lies beyond faults like everything else that is not mapped.
fn ipa_bits<'a>(mapped: impl Iterator<Item = &'a PhysRange>, pa_bits: u8) -> u8 {
    const THREE_LEVELS: u8 = 39;
    let highest = mapped.map(|range| range.end().saturating_sub(1)).max().unwrap_or(0);
    let needed = (u64::BITS - highest.leading_zeros()) as u8;
    needed.max(THREE_LEVELS).min(pa_bits)
}

/// The way to change sizes that was asked for, if the weakest CPU can do it.
fn size_change(choice: SizeChangeChoice, weakest: BbmLevel) -> Result<BbmLevel, Refusal> {
    let needs = |level: BbmLevel, name: &str| {
        if weakest >= level {
            return Ok(level);
        }
        Err(Refusal(alloc::format!(
            "bbm={name} needs FEAT_BBM level {} on every CPU, and the weakest has level {}: use bbm=break or bbm=auto",
            level as u8,
            weakest as u8
        )))
    };
    match choice {
        SizeChangeChoice::Auto => Ok(weakest),
        SizeChangeChoice::BreakBeforeMake => Ok(BbmLevel::Level0),
        SizeChangeChoice::NoTranslation => needs(BbmLevel::Level1, "nt"),
        SizeChangeChoice::Direct => needs(BbmLevel::Level2, "direct").map(|level| weakest.max(level)),
    }
}

/// The registers of a virtio-mmio transport that the guest is granted, with a warning that says what that means.
fn grant(machine: &Machine, address: u64) -> Result<PhysRange, Refusal> {
    let device = machine.virtio.iter().find(|device| device.registers.start() == address);
    let device = device.ok_or_else(|| {
        Refusal(alloc::format!("grant-dma={address:#x}: no virtio-mmio transport in the device tree begins there"))
    })?;
    let neighbours = machine.neighbours(device.registers).count();
    log::warn!(
        "grant-dma={address:#x}: the guest can make this device read and write ALL memory, the hypervisor's too. \
         Stage 2 does not hold it back; nothing in this run is isolated any more"
    );
    if neighbours > 0 {
        log::warn!("grant-dma={address:#x}: {neighbours} more devices share its 4 KiB page and are granted with it");
    }
    Ok(device.registers)
}

fn map(table: &mut Table, range: PhysRange, attributes: Attributes) -> Result<(), Error> {
    let ipas = IpaRange::new(Ipa(range.start()), Ipa(range.end()))?;
    events::fallible(Call::Map, Some(ipas), || table.map(ipas, PhysAddr(range.start()), attributes))
}

/// Says of what leaves the table consists.
pub fn report(table: &Table) {
    let census = table.census();
    let names = LeafSize::DESCENDING.into_iter().zip(census.leaves);
    let leaves: Vec<_> = names.map(|(size, count)| alloc::format!("{count} of {}", size_name(size))).collect();
    log::info!(
        "stage 2: {} leaves ({}); {} bytes in {} tables; {} bits of IPA, sizes change as with BBM level {}",
        census.leaves.iter().sum::<usize>(),
        leaves.join(", "),
        census.tables as u64 * PAGE_SIZE,
        census.tables,
        table.geometry().ipa_bits(),
        table.bbm_level() as u8,
    );
}

/// A leaf's size as reports name it.
const fn size_name(size: LeafSize) -> &'static str {
    match size {
        LeafSize::Block1G => "1 GiB",
        LeafSize::Contiguous32M => "32 MiB",
        LeafSize::Block2M => "2 MiB",
        LeafSize::Contiguous64K => "64 KiB",
        LeafSize::Page => "4 KiB",
    }
}
