//! What is refused before anything is built, fetched or booted: options that can't work together or on this machine, and
//! files that are not there. A refusal names the value, the reason, and what to do.

use super::saving;
use crate::added::Added;
use crate::cli::{self, Common, Dirty, Granule, Linux, Migrate, Payload, Services};
use crate::devices;
use crate::events;
use crate::guest_kernel;
use crate::machine::{self, Gic};
use crate::manager::plan::{Plan, Protect};
use crate::placement::RAM_BASE;
use crate::setup::guest::Kernel;
use crate::size::Size;
use anyhow::{Context, Result, bail, ensure};
use hypervisor::machine::MAX_CPUS;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::Path;

/// CPUs that GICv2 has registers for.
const GIC_V2_CPUS: u32 = 8;
/// The least memory that is taken: room for Debian's kernel, the tool's own initramfs, the hypervisor and a management core.
const LEAST: Size = Size::mib(192);
/// Models of Armv8.0, which has no dirty state that hardware keeps (FEAT_HAFDBS came with Armv8.1).
const WITHOUT_DIRTY_STATE: [&str; 4] = ["cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72"];

/// Checks `cargo hv linux`, and says what its session is to do.
///
/// # Errors
/// What can't work.
pub fn linux(options: &Linux) -> Result<Option<Plan>> {
    let Linux { services, common, .. } = options;
    saving::check(options)?;
    let saves = options.saving.save.is_some();
    let plan = services.plan()?.or_else(|| saves.then(Plan::idle));
    ensure!(
        options.run.is_some() || own_init(options) || saves || std::io::stdin().is_terminal(),
        "standard input is not a terminal, so nobody could use the guest's shell; give the command with --run, as in \
         cargo hv linux --run 'uname -a'"
    );
    ensure!(
        plan.is_none() || !common.icount,
        "--icount counts the instructions of all CPUs together, and the management core never rests; leave --icount out, or \
         the service"
    );
    ensure!(
        !services.protect_late || options.run.is_some(),
        "--protect-late waits for a command to begin; give one with --run, or leave --protect-late out"
    );
    ensure!(
        !services.quiesce || options.devices.is_any(),
        "--quiesce has no effect without a mediated device; add --disk, --net, --rootfs or --mediate, or leave it out"
    );
    machine(common, plan.is_some())?;
    memory(common)?;
    ensure!(
        !services.oracle || common.smp < events::MAX_CPUS,
        "--smp {} is too much for --oracle, which models {} CPUs, the management core among them; use --smp {}",
        common.smp,
        events::MAX_CPUS,
        events::MAX_CPUS - 1
    );
    granule(options)?;
    dirty_state(services, common)?;
    let size = common.memory.unwrap_or(machine::MEMORY);
    services.protect.iter().try_for_each(|protect| in_ram(protect, size))?;
    if let Some(Kernel::File(file)) = &options.kernel {
        guest_kernel::check(file, options.raw)?;
    }
    ensure!(
        !(options.raw && matches!(options.kernel, Some(Kernel::Debian(_)))),
        "--raw has no effect on Debian's kernels, which are arm64 Images; leave it out"
    );
    ensure!(
        options.initrd.is_none() || options.devices.rootfs.is_none(),
        "--initrd can't be used with --rootfs, whose initramfs is the tool's own; leave one of them out"
    );
    if let Some(file) = &options.initrd {
        readable(file, "--initrd")?;
    }
    ensure!(
        options.add.is_empty() || options.devices.rootfs.is_none(),
        "--add has no effect with --rootfs, whose files take the place of the initramfs; put the files on a disk (--disk), or leave \
         --rootfs out"
    );
    options.add.iter().try_for_each(Added::check)?;
    if let Some(folder) = &services.out {
        folder_for(folder)?;
    }
    Ok(plan)
}

/// Whether an init of the user's starts: it may need nobody at a terminal.
fn own_init(options: &Linux) -> bool {
    options.initrd.is_some() || options.devices.rootfs.is_some()
}

/// Checks `cargo hv payload`.
///
/// # Errors
/// What can't work.
pub fn payload(options: &Payload) -> Result<()> {
    machine(&options.common, false)?;
    if let Some(file) = &options.image {
        guest_kernel::check(file, options.raw)?;
    }
    if let Some(file) = &options.junit {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(
            folder.is_dir() && !file.is_dir(),
            "--junit {} can't be written, for {} is not a folder, or the file is one; name another path",
            file.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Checks the machines of `cargo hv migrate`.
///
/// # Errors
/// What can't work.
pub fn moved(options: &Migrate) -> Result<()> {
    let net = options.devices.net.as_deref();
    ensure!(
        !net.is_some_and(devices::forwards),
        "migrate can't move a port of this host, which the first machine has until it ends; leave hostfwd out of --net"
    );
    let Migrate { common, devices, .. } = options;
    ensure!(
        !(options.beside_qemu && devices.is_any()),
        "--beside-qemu measures a guest without devices; leave --disk, --net and --mediate out"
    );
    machine(common, true)?;
    memory(common)
}

/// The machine's CPUs and devices, with one more CPU where there is a management core.
fn machine(common: &Common, management: bool) -> Result<()> {
    let smp = common.smp;
    let most = match common.gic {
        Gic::V2 => GIC_V2_CPUS,
        Gic::V3 => MAX_CPUS as u32,
    };
    let guest = most - u32::from(management);
    if smp > guest {
        let whose = if management { format!(": {guest} for the guest and one for management") } else { String::new() };
        match common.gic {
            Gic::V2 if smp <= MAX_CPUS as u32 - u32::from(management) => {
                bail!(
                    "--smp {smp} is too much for GICv2, which serves {most} CPUs{whose}; use --gic 3, or --smp {guest}"
                )
            }
            _ => bail!("--smp {smp} is too much: the hypervisor runs on {most} CPUs{whose}; use --smp {guest} or less"),
        }
    }
    machine::Machine::new("").add_virtio(&common.grant_dma).map(|_| ())
}

/// Checks the machine that a file describes.
///
/// # Errors
/// What no machine of this tool's has.
pub fn saved(common: &Common) -> Result<()> {
    ensure!(common.smp > 0, "a machine has a CPU");
    machine(common, true)?;
    memory(common)
}

/// Enough for a Linux.
fn memory(common: &Common) -> Result<()> {
    match common.memory {
        Some(size) if size < LEAST => bail!(
            "--memory {}M is too little for the hypervisor and a Linux; use --memory {}M or more",
            size.0 >> 20,
            LEAST.0 >> 20
        ),
        _ => Ok(()),
    }
}

/// What a granule other than 4 KiB can't have. Whether the CPU has it, the hypervisor says.
fn granule(options: &Linux) -> Result<()> {
    let Linux { services, granule, .. } = options;
    let name = cli::name(*granule);
    ensure!(
        *granule == Granule::K4 || !services.oracle,
        "--granule {name} can't be used with --oracle, whose record is one of tables with pages of 4 KiB; leave one of them out"
    );
    for Protect { start, end, .. } in &services.protect {
        let bytes = granule.bytes();
        ensure!(
            (start | end).is_multiple_of(bytes),
            "--protect {start:#x}-{end:#x} is not made of whole pages of --granule {name}; write {:#x}-{:#x}",
            start / bytes * bytes,
            end.next_multiple_of(bytes)
        );
    }
    Ok(())
}

fn dirty_state(services: &Services, common: &Common) -> Result<()> {
    let model = common.cpu.split(',').next().unwrap_or_default();
    ensure!(
        services.dirty != Some(Dirty::Hardware) || !WITHOUT_DIRTY_STATE.contains(&model),
        "--dirty hardware needs FEAT_HAFDBS, which --cpu {model} does not have; use --dirty auto or --cpu max"
    );
    Ok(())
}

/// Protected memory is the machine's RAM. What of it is the hypervisor's own is known when that runs.
fn in_ram(protect: &Protect, memory: Size) -> Result<()> {
    let (start, end) = (RAM_BASE, RAM_BASE + memory.0);
    ensure!(
        start <= protect.start && protect.end <= end,
        "--protect {:#x}-{:#x} is outside the machine's RAM, which is {start:#x}-{end:#x} with --memory {}M; choose a range \
         inside it",
        protect.start,
        protect.end,
        memory.0 >> 20
    );
    Ok(())
}

fn readable(file: &Path, option: &str) -> Result<()> {
    let data = File::open(file).and_then(|file| file.metadata());
    let data = data.with_context(|| format!("{option} {} can't be read; name a file that can", file.display()))?;
    ensure!(data.is_file(), "{option} {} is not a file; name one", file.display());
    Ok(())
}

/// A folder that can be written to; it is made if need be.
fn folder_for(folder: &Path) -> Result<()> {
    let probe = folder.join(format!(".hv-{}", std::process::id()));
    let made = fs::create_dir_all(folder).and_then(|()| fs::write(&probe, b"")).and_then(|()| fs::remove_file(&probe));
    made.with_context(|| format!("--out {} can't be written to; name another folder", folder.display()))
}
