//! `cargo hv linux --save`: what can be saved, and how it is begun.

use crate::cli::{self, Common, Devices, Firmware, Linux, Saving, Services, Switch};
use crate::console::Cut;
use crate::devices::check_net_of_file;
use crate::disk::Format;
use crate::initramfs::Command;
use crate::machine::{Gic, Machine};
use crate::manager::saving::{Save, When};
use crate::saved::{self, Draft, Guest, Image, Saved};
use anyhow::{Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Refuses what can't be saved.
///
/// # Errors
/// The first such option, in a sentence.
pub fn check(options: &Linux) -> Result<()> {
    if options.saving.save.is_none() {
        return Ok(());
    }
    devices(&options.devices, "--save")?;
    options.devices.net.as_deref().map_or(Ok(()), check_net_of_file)?;
    ensure!(
        options.firmware == Firmware::None,
        "--save knows no machine that firmware has started; leave --firmware out"
    );
    ensure!(
        options.run.is_some() || options.initrd.is_none(),
        "--save goes with --run, or with the tool's own initramfs: what another one does nobody knows; leave --initrd out"
    );
    ensure!(!options.common.icount, "--save does not go with --icount; leave one of them out");
    services(&options.services, "--save")?;
    common(&options.common, "--save")
}

/// Refuses devices that a machine that is saved or moved can't have.
///
/// # Errors
/// The first such option, in a sentence.
pub fn devices(devices: &Devices, option: &str) -> Result<()> {
    ensure!(
        devices.rootfs.is_none(),
        "{option} can't save what a guest has written over the image of --rootfs; leave --rootfs out, or use --disk"
    );
    for disk in &devices.disk {
        ensure!(
            disk.examine()? == Format::Raw,
            "{option} takes raw disks only, and {} is none, which QEMU writes when it lets go of it; convert it with qemu-img convert \
             -O raw",
            disk.file.display()
        );
    }
    Ok(())
}

/// What is written down of a machine's devices, as they are now.
///
/// # Errors
/// If a disk is gone.
pub fn with_devices(machine: saved::Machine, devices: &Devices) -> Result<saved::Machine> {
    let disks = devices.disk.iter().map(|disk| Image::of(&disk.file, disk.read_only)).collect::<Result<_>>()?;
    Ok(saved::Machine { disks, net: devices.net.clone(), mediate: devices.mediate.clone(), ..machine })
}

/// Refuses services that a machine that is saved or moved can't have.
pub fn services(services: &Services, option: &str) -> Result<()> {
    ensure!(
        services.manager != Some(Switch::Off),
        "{option} needs a CPU for management, which --manager off does not keep; leave that out"
    );
    ensure!(
        !services.oracle,
        "{option} does not go with --oracle, whose hypervisor is another one; leave one of them out"
    );
    ensure!(
        services.protect.is_empty(),
        "{option} does not save what --protect has set up, which would be gone unseen; leave it out"
    );
    ensure!(services.weaken.is_none(), "{option} does not go with --weaken; leave it out");
    Ok(())
}

/// Refuses machines that can't be saved or moved.
pub fn common(common: &Common, option: &str) -> Result<()> {
    if let Some(device) = common.grant_dma.first() {
        bail!(
            "{option} can't save the device of --grant-dma {device}, whose state only QEMU knows; leave --grant-dma out"
        );
    }
    ensure!(
        common.extra.is_empty(),
        "{option} does not write down QEMU's own arguments, behind --, so the machine would not be the same; leave them out"
    );
    ensure!(
        !common.cpu.contains("mte=on"),
        "{option} does not save the tags of FEAT_MTE; use --cpu {} without it",
        common.cpu.split(',').next().unwrap_or_default()
    );
    Ok(())
}

/// What is written down of a machine without devices.
pub fn machine(common: &Common, memory: u64, guest: Guest) -> saved::Machine {
    let gic = match common.gic {
        Gic::V2 => 2,
        Gic::V3 => 3,
    };
    saved::Machine {
        cpu: common.cpu.clone(),
        gic,
        smp: common.smp,
        memory,
        bbm: cli::name(common.bbm),
        disks: Vec::new(),
        net: None,
        mediate: Vec::new(),
        guest,
    }
}

/// Begins the file, and gives the machine the store. Before the management core is added.
///
/// # Errors
/// If the file can't be made.
pub fn begin(
    options: &Linux,
    machine: &mut Machine,
    command: Option<&Command>,
    typed: Sender<Vec<u8>>,
    console: &Path,
) -> Result<Option<Arc<Save>>> {
    let Some(path) = &options.saving.save else { return Ok(None) };
    let draft = Draft::begin(path, saved::room_for(machine.memory.0, 1))?;
    let guest = match command {
        Some(command) => Guest::Runs { nonce: command.nonce.clone(), cut: Cut::default() },
        None => Guest::Shell,
    };
    let saved = with_devices(self::machine(&options.common, machine.memory.0, guest), &options.devices)?;
    let shell = command.is_none().then(|| {
        // What an earlier run has left is no sign of this one's shell.
        let _ = std::fs::remove_file(console);
        console.to_owned()
    });
    save(&options.saving, machine, (saved, draft), typed, shell).map(Some)
}

/// Begins to save a machine again that comes from the file `from`, as [`begin`] does. The store has the old contents first, and the
/// guest is read from there: there is one device, and the old file stays as it is.
///
/// # Errors
/// If the file can't be made.
pub fn begin_again(
    options: &Saving,
    machine: &mut Machine,
    from: &Saved,
    nonce: &str,
    typed: Sender<Vec<u8>>,
) -> Result<Option<Arc<Save>>> {
    let Some(path) = &options.save else { return Ok(None) };
    let room = saved::room_for(machine.memory.0, 1);
    let draft = Draft::begin_with(path, room, &from.path)?;
    let guest = match &from.machine.guest {
        Guest::Shell => Guest::Shell,
        _ => Guest::Runs { nonce: nonce.to_owned(), cut: Cut::default() },
    };
    let has_shell = guest == Guest::Shell;
    let save = save(options, machine, (saved::Machine { guest, ..from.machine.clone() }, draft), typed, None)?;
    if has_shell {
        save.shell_is_there();
    }
    Ok(Some(save))
}

fn save(
    options: &Saving,
    machine: &mut Machine,
    (saved, draft): (saved::Machine, Draft),
    typed: Sender<Vec<u8>>,
    console: Option<PathBuf>,
) -> Result<Arc<Save>> {
    machine.add_store(draft.unfinished(), false)?;
    let when = options.save_when.unwrap_or(When::End);
    if when == When::Asked {
        eprintln!("hv: to save the machine: kill -USR1 {}", std::process::id());
    }
    Ok(Arc::new(Save::new(when, options.save_and_go, (saved, draft), typed, console)?))
}
