//! Makes the guest's table.

use crate::el2::base::refusal::Refusal;
use crate::el2::guest_memory::table_lock::{Table, TableLock};
use crate::el2::guest_memory::{GUEST_MEMORY, GuestMemory, events, gic, guest_logs::Logs, set_registers, shape::Shape};
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Release;
use hypervisor::granule::{FRAMES, Granule};
use hypervisor::machine::{GuestRegisters, Machine};
use hypervisor::options::{Leaves, Options, SizeChangeChoice};
use hypervisor::range::PhysRange;
use hypervisor_abi::events::{Call, Record};
use stage2::{
    Attributes, BbmLevel, Config, Error, Features, Granule as _, Ipa, IpaRange, LeafSize, PhysAddr, Stage2, Vmid,
};

/// Makes the table: the guest's RAM, and those of its registers that can be mapped; nothing else.
///
/// # Errors
///
/// A sentence: a `bbm` that the CPUs cannot do, redistributors that cannot be given, a table that does not fit.
pub fn create(
    machine: &Machine,
    options: &Options,
    memory: &[PhysRange],
    features: Features,
    registers: GuestRegisters,
) -> Result<(), Refusal> {
    let features = features.with_bbm(size_change(options.bbm, features.bbm)?);
    let vmid = Vmid::new(1)?;
    // Without a management core or hypercalls nobody starts a log, and hardware need not look for leaves to mark.
    let hardware_dirty = options.wants_manager() || options.hypercalls;
    warn_of_grants(&options.grant_dma);
    let forwarded: Vec<_> = registers.forwarded().collect();
    let devices = gic::guard(machine, registers)?;
    let ipa_bits = ipa_bits(memory.iter().chain(&devices).chain(&forwarded), features.pa_bits);
    let config = Config::new(vmid, features).with_hardware_dirty(hardware_dirty).with_ipa_bits(ipa_bits);
    let config = match options.leaves {
        Leaves::Pages => config.with_largest(LeafSize::Page),
        Leaves::Blocks => config.with_contiguous(false),
        Leaves::Runs => config,
    };
    events::prepare();
    let mut table = events::fallible(Call::New, None, || Stage2::with_granule(events::PLATFORM, config))?;
    let (vttbr, vtcr) = (table.vttbr(), table.vtcr());
    let root = (table.root(), table.geometry().root_tables() as u64 * FRAMES);
    events::push(|| Record::attach(vmid.get(), ipa_bits, root.0.0));
    // TLBIs act on the VMID that VTTBR_EL2 holds; mapping may need some.
    set_registers(vttbr, vtcr);

    for &ram in memory {
        map(&mut table, ram, Attributes::RAM)?;
    }
    for &device in &devices {
        map(&mut table, device, Attributes::DEVICE)?;
    }

    log::info!("{}", Shape::of(&table));
    if log::log_enabled!(log::Level::Debug) {
        table.dump().to_string().lines().for_each(|line| log::debug!("stage 2: {line}"));
    }
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
    // Release: a CPU that finds the pointer finds what is behind it.
    GUEST_MEMORY.store(Box::leak(memory), Release);
    Ok(())
}

/// Bits of IPA that reach everything that the guest is given, so that a walk has no more levels than it needs: up to 39
/// bits it begins at level 1, with one table, and with the larger granules up to 36 or 42 bits at level 2. What lies beyond
/// faults like everything else that is not mapped.
fn ipa_bits<'a>(mapped: impl Iterator<Item = &'a PhysRange>, pa_bits: u8) -> u8 {
    const LEVELS: u32 = if FRAMES == 1 { 3 } else { 2 };
    const ONE_ROOT: u8 = (Granule::SHIFT + LEVELS * (Granule::SHIFT - 3)) as u8;
    let highest = mapped.map(|range| range.end().saturating_sub(1)).max().unwrap_or(0);
    let needed = (u64::BITS - highest.leading_zeros()) as u8;
    needed.max(ONE_ROOT).min(pa_bits)
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

/// Says what it means that the guest is granted the virtio-mmio transports at these addresses.
fn warn_of_grants(granted: &[u64]) {
    for address in granted {
        log::warn!(
            "grant-dma={address:#x}: the guest can make this device read and write ALL memory, the hypervisor's too. \
             Stage 2 does not hold it back; nothing in this run is isolated any more"
        );
    }
}

fn map(table: &mut Table, range: PhysRange, attributes: Attributes) -> Result<(), Error> {
    let ipas = IpaRange::new(Ipa(range.start()), Ipa(range.end()))?;
    events::fallible(Call::Map, Some(ipas), || table.map(ipas, PhysAddr(range.start()), attributes))
}
