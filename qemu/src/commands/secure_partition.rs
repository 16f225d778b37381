//! `cargo hv secure-partition`: the engine embedded at S-EL2 (examples/secure-partition), run and checked; or measured.

use crate::bench::documents::SIZES;
use crate::bench::sizes::Sizes;
use crate::cli::{Bbm, SecurePartition, name};
use crate::code_size;
use crate::commands::bench::write_documents;
use crate::console::{Lines, text};
use crate::ending::{self, Status};
use crate::images::{PROFILE, build_folder, run_cargo};
use crate::machine::Machine;
use crate::progress::Step;
use crate::run::{self, Flow, Stop};
use crate::setup::emulator::Emulator;
use crate::setup::rust::{TARGET, Toolchain};
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The example's package.
pub const PACKAGE: &str = "secure-partition";
/// Its feature for the bare-metal images.
pub const FEATURE: &str = "image";
/// The example's images: the manager, which QEMU starts at EL3, and the partitions' program.
const SPM: &str = "spm";
const PARTITION: &str = "partition";
/// What the engine's code in the example, and a call of it, may take at most.
const TEXT_LIMIT: u64 = 24 << 10;
const STACK_LIMIT: u64 = 1152;
/// The time limit, unless `--timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs the command.
///
/// # Errors
/// If something can't be set up or built.
pub fn secure_partition(workspace: &Workspace, options: &SecurePartition) -> Result<Status> {
    if options.size {
        return size(workspace, &build(workspace)?.join(SPM), options.renew);
    }
    if options.bbm == Bbm::Nt {
        bail!("--bbm nt is for FEAT_BBM level 1, which no CPU that QEMU models has; use --bbm auto, break or direct");
    }
    let emulator = Emulator::find_or_install(options.qemu.as_deref())?;
    emulator.check_cpu(&options.cpu)?;
    let images = build(workspace)?;
    let machine = machine(&images, options)?;
    let timeout = options.timeout.unwrap_or(TIMEOUT);
    let mut lines = Lines::default();
    let step = Step::begin(format!("Moving memory from one partition to the other and back, {} times", options.moves));
    let outcome = run::capture(&emulator, &machine, timeout, |bytes, _| {
        lines.push(bytes, |line| step.print(&text(line)));
        Flow::Continue
    })?;
    drop(step);
    let passed =
        outcome.console.lines().iter().rev().find_map(|line| line.strip_prefix("[spm] end: ").map(str::to_owned));
    let status = match (outcome.stop, passed.as_deref()) {
        (Stop::Exited(status), Some("passed")) if status.success() => Status::Success,
        (_, Some("failed" | "passed")) => Status::Failure,
        (_, Some("refused")) => Status::Refused,
        (Stop::TimedOut, _) => Status::Timeout,
        (Stop::Exited(status), _) if !status.success() => Status::Emulator,
        _ => Status::NoResult,
    };
    if !matches!(status, Status::Success | Status::Failure | Status::Refused) {
        eprintln!("{}", ending::explain(status, &outcome, timeout.as_secs()));
    }
    Ok(status)
}

/// What `cargo hv test` runs: the moves, by either way to change a size (a tenth of them, unless `all` are wanted), and the
/// limits of the engine's size.
pub fn checks(all: bool) -> [SecurePartition; 3] {
    let moves = |bbm| SecurePartition {
        size: false,
        renew: false,
        bbm,
        moves: if all { 10_000 } else { 1000 },
        seed: 1,
        cpu: "max".into(),
        qemu: std::env::var_os("HV_QEMU").map(PathBuf::from),
        timeout: None,
    };
    [moves(Bbm::Direct), moves(Bbm::Break), SecurePartition { size: true, ..moves(Bbm::Auto) }]
}

/// Builds both images and returns their folder.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = Toolchain::find_or_install(workspace)?;
    let step = Step::begin("Building the secure-partition example");
    let mut command = toolchain.cargo("build");
    command.args(["--profile", PROFILE, "--package", PACKAGE, "--features", FEATURE, "--bin", SPM, "--bin", PARTITION]);
    run_cargo(workspace, command, &step).context("the example does not build")?;
    step.done("built");
    Ok(build_folder(workspace)?.join(TARGET).join(PROFILE))
}

/// The machine: as for the hypervisor, with a Secure state. Its host tells it its options, and its host is told how it went,
/// by semihosting.
fn machine(images: &Path, options: &SecurePartition) -> Result<Machine> {
    let program = images.join(PARTITION);
    let program = program.to_str().with_context(|| format!("{} is not valid UTF-8", program.display()))?;
    let words =
        [format!("bbm={}", name(options.bbm)), format!("moves={}", options.moves), format!("seed={}", options.seed)];
    let mut semihosting = format!("enable=on,target=native,arg={SPM}");
    for word in words {
        semihosting += &format!(",arg={word}");
    }
    let mut machine = Machine::new(images.join(SPM));
    machine.cpu = options.cpu.clone();
    machine.smp = 2;
    let loader = format!("loader,file={}", program.replace(',', ",,"));
    machine.extra = ["-machine", "secure=on", "-device", &loader, "-semihosting-config", &semihosting]
        .map(std::ffi::OsString::from)
        .to_vec();
    Ok(machine)
}

/// Prints how large the engine is in the example, and how deep its calls go.
fn size(workspace: &Workspace, image: &Path, renew: bool) -> Result<Status> {
    let bytes = std::fs::read(image).with_context(|| format!("can't read {}", image.display()))?;
    // `tables.rs` is where the example calls the engine.
    let is_user = |name: &str| name.contains("secure_partition::tables::");
    let measured = code_size::measure(&bytes, is_user, |name| name.trim_start_matches('<').starts_with("stage2::"))?;
    println!("The engine in {}, with all that it calls (opt-level s, feature `small`):", image.display());
    println!("{:>7} {:>6}  function", "code", "stack");
    for (name, code, stack) in &measured.functions {
        println!("{code:>7} {stack:>6}  {name}");
    }
    println!();
    for (name, stack) in &measured.stack {
        println!("stack of a call {stack:>6} bytes  {name}");
    }
    for name in &measured.indirect {
        println!("calls through a pointer, which are not counted: {name}");
    }
    let deepest = measured.stack.iter().map(|(_, stack)| *stack).max().unwrap_or(0);
    println!("text {} bytes (limit {TEXT_LIMIT}), stack {deepest} bytes (limit {STACK_LIMIT})", measured.text);
    if renew {
        let compiler = Toolchain::find_or_install(workspace)?.compiler()?;
        write_whole(&workspace.root().join(SIZES), &Sizes::of(&measured, compiler).json()?)?;
        write_documents(workspace)?;
    }
    Ok(if measured.text < TEXT_LIMIT && deepest < STACK_LIMIT { Status::Success } else { Status::Failure })
}
