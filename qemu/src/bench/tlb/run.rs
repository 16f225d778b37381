//! One run: a guest that boots and works in QEMU, with the plugin that feeds the model.

use super::{Figures, Measured, PARTS, Shape, title};
use crate::added::{self, Added};
use crate::console::Extract;
use crate::ending::{self, Status};
use crate::images::{self, Image};
use crate::initramfs::{self, Command};
use crate::machine::Machine;
use crate::machine::files::double_commas;
use crate::manager::{self, plan::Plan, show::Show};
use crate::placement::RAM_BASE;
use crate::progress::Step;
use crate::run::{self, Flow, Limits, Stopper};
use crate::setup::emulator::Emulator;
use crate::setup::guest::Guest;
use crate::temporary::Temporary;
use crate::workspace::{Workspace, cargo, write_whole};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tlb_model::{Record, Sizes};

/// The plugin's package, and the file that it is built to.
const PLUGIN: &str = "tlb-plugin";
const PLUGIN_FILE: &str = "libtlb_plugin.so";
/// From one harvest of a log to the next.
const EVERY: Duration = Duration::from_millis(500);
/// Harvests of a log that is stopped while Linux boots.
const ROUNDS: u64 = 2;

/// All that runs have in common.
#[derive(Debug)]
pub struct Bench<'a> {
    workspace: &'a Workspace,
    emulator: &'a Emulator,
    hypervisor: PathBuf,
    plugin: PathBuf,
    guest: Guest,
    initrd: Temporary,
    nonce: String,
    sizes: Sizes,
    limit: Duration,
}

impl<'a> Bench<'a> {
    /// Builds and fetches it.
    ///
    /// # Errors
    /// If something can't be built or fetched.
    pub fn prepare(workspace: &'a Workspace, emulator: &'a Emulator, sizes: Sizes, limit: Duration) -> Result<Self> {
        let guest = Guest::get(workspace)?;
        let hypervisor = images::build(workspace, Image::Hypervisor)?;
        let workload = images::program(workspace, "tlb-workload")?;
        let plugin = build_plugin(workspace)?;
        let command = Command::new("/tlb-workload");
        let mut archive = initramfs::archive(&guest.busybox, Some(&command))?;
        let program: Result<Added, String> = format!("{}:/tlb-workload", workload.display()).parse();
        archive.extend(added::archive(&[program.map_err(anyhow::Error::msg)?])?);
        let initrd = Temporary::new(workspace.folder("images")?.join(format!("tlb-{}.cpio", command.nonce)));
        write_whole(initrd.path(), &archive)?;
        Ok(Self { workspace, emulator, hypervisor, plugin, guest, initrd, nonce: command.nonce, sizes, limit })
    }

    /// What is measured, without figures.
    pub fn about(&self) -> Figures {
        let kernel = self.guest.kernel.file_name().map(|name| name.to_string_lossy().into_owned());
        Figures {
            qemu: self.emulator.version.clone(),
            kernel: kernel.unwrap_or_default(),
            sizes: self.sizes.to_string(),
            shapes: Vec::new(),
        }
    }

    /// Measures all parts with stage 2 of this shape, the boot only `with_boot`.
    ///
    /// # Errors
    /// If the guest does not come to its end, or the plugin's figures are worth nothing.
    pub fn measure(&self, shape: &Shape, with_boot: bool) -> Result<Measured> {
        let step = Step::begin(format!("Linux with stage 2: {}", shape.title));
        let folder = self.workspace.folder("tlb")?;
        let file = |kind: &str| Temporary::new(folder.join(format!("{kind}-{}-{}", shape.name, std::process::id())));
        let (ram, out) = (file("ram"), file("records"));
        let mut machine = self.machine(shape, ram.path(), out.path(), with_boot)?;
        let stopper = Stopper::default();
        let show = Arc::new(Show::beside_output(step));
        let session = shape.log.map(|mechanism| {
            let plan = Plan {
                dirty: Some(mechanism),
                every: EVERY,
                rounds: shape.stopped.then_some(ROUNDS),
                ..Plan::default()
            };
            manager::attach(&mut machine, plan, Arc::clone(&show), stopper.clone())
        });
        let session = session.transpose()?;
        let mut extract = Extract::new(&self.nonce);
        let limits = Limits { total: self.limit, silence: self.limit };
        let observed = run::capture_within(self.emulator, &machine, limits, &stopper, None, |bytes, _| {
            extract.push(bytes, |_, line| show.state(String::from_utf8_lossy(line).trim_end()));
            Flow::Continue
        });
        let summary = session.map(manager::Running::finish).transpose();
        show.clear();
        if let Some(summary) = summary? {
            ensure!(summary.is_good(), "the log of \"{}\": {}", shape.title, summary.failures.join("; "));
        }
        let outcome = observed?;
        // Without the hypervisor there is nobody who says how it ended.
        let status = if shape.leaves.is_some() { ending::judge(&outcome) } else { Status::Success };
        if status != Status::Success || extract.status() != Some(0) {
            let status = if status == Status::Success { Status::NoResult } else { status };
            bail!("{}", ending::explain(status, &outcome, self.limit.as_secs()));
        }
        Ok(Measured { shape: shape.name.into(), records: records(out.path(), with_boot)? })
    }

    fn machine(&self, shape: &Shape, ram: &Path, out: &Path, with_boot: bool) -> Result<Machine> {
        let rodata = if shape.linear_blocks { " rodata=on" } else { "" };
        let bootargs = format!("console=ttyAMA0 rdinit=/hv/init quiet loglevel=1 panic=-1 nokaslr{rodata}");
        let mut machine = Machine::new(&self.hypervisor);
        // Under icount the CPUs take turns, and a management core, which never rests, would take most of them.
        machine.icount = shape.is_exact();
        if !shape.is_exact() {
            machine.cpu = "max,pauth=off".into();
        }
        match shape.leaves {
            Some(leaves) => {
                machine.append = format!("log=warn leaves={leaves}");
                machine.load_guest(&self.guest.kernel, Some(self.initrd.path()), &bootargs)?;
            }
            None => {
                machine.kernel = self.guest.kernel.clone();
                machine.initrd = Some(self.initrd.path().to_owned());
                machine.append = bootargs;
                machine.virtualization = false;
            }
        }
        let path = |path: &Path| -> Result<String> {
            Ok(double_commas(path.to_str().with_context(|| format!("{} is not valid UTF-8", path.display()))?))
        };
        let words = [
            "-object".to_owned(),
            format!("memory-backend-file,id=ram,share=on,size={}K,mem-path={}", machine.memory.0 >> 10, path(ram)?),
            "-machine".to_owned(),
            "memory-backend=ram".to_owned(),
            "-plugin".to_owned(),
            format!(
                "{},ram={},base={RAM_BASE},out={},sizes={},boot={}",
                path(&self.plugin)?,
                path(ram)?,
                path(out)?,
                self.sizes.to_string().replace(',', "/"),
                if with_boot { "on" } else { "off" }
            ),
        ];
        machine.extra.extend(words.map(Into::into));
        Ok(machine)
    }
}

/// Reads what the plugin has written: a line a window.
fn records(path: &Path, with_boot: bool) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let records = text.lines().map(serde_json::from_str).collect::<Result<Vec<Record>, _>>();
    let records = records.context("the plugin's records can't be read")?;
    let windows: Vec<u64> = records.iter().map(|record| record.window).collect();
    ensure!(
        windows.iter().copied().eq(u64::from(!with_boot)..PARTS.len() as u64),
        "the plugin has written records of the windows {windows:?}"
    );
    for record in &records {
        let (part, Record { counts, compared, different, .. }) = (title(record.window), record);
        if let Some(problem) = &record.problem {
            bail!("{part}: {problem} ({different} of {compared} translations differ)");
        }
        ensure!(counts.failed == 0, "{part}: {} walks found no translation", counts.failed);
        ensure!(*compared > 0 && *different == 0, "{part}: translations were not compared, or differ");
    }
    Ok(records)
}

/// Builds the plugin for this host, and returns its path.
fn build_plugin(workspace: &Workspace) -> Result<PathBuf> {
    let step = Step::begin("Building the plugin");
    let mut command = std::process::Command::new(cargo());
    command.args(["build", "--quiet", "--release", "--package", PLUGIN]).current_dir(workspace.root());
    command.env("CARGO_TARGET_DIR", workspace.target()).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().context("can't run cargo")?;
    ensure!(
        output.status.success(),
        "{PLUGIN} does not build:\n{}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    step.done("built");
    let path = workspace.target().join("release").join(PLUGIN_FILE);
    ensure!(path.is_file(), "{} is missing: this host's libraries have another name", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes records as the plugin does, and reads them.
    fn read(first: u64, change: impl Fn(&mut Record)) -> Result<Vec<Record>> {
        let file = Temporary::new(std::env::temp_dir().join(format!("hv-tlb-records-{}", std::process::id())));
        let mut text = String::new();
        for window in first..PARTS.len() as u64 {
            let mut record = Record { window, compared: 1, ..Record::default() };
            change(&mut record);
            text += &(serde_json::to_string(&record)? + "\n");
        }
        std::fs::write(file.path(), text)?;
        records(file.path(), true)
    }

    #[test]
    fn figures_that_are_worth_nothing_are_refused() {
        assert_eq!(read(0, |_| {}).unwrap().len(), PARTS.len());
        assert!(read(1, |_| {}).is_err());
        let broken: [fn(&mut Record); 5] = [
            |record| record.counts.failed = 1,
            |record| record.window += 1,
            |record| record.different = u64::from(record.window == 3),
            |record| record.compared = 0,
            |record| record.problem = (record.window == 4).then(|| "a granule".into()),
        ];
        assert!(broken.into_iter().all(|change| read(0, change).is_err()));
    }
}
