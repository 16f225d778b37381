//! `cargo hv bench`: exact instruction counts beside KVM's, and other measurements.

use crate::bench::check::{self, Comparison};
use crate::bench::documents::{self, BASELINE, KVM, STRATEGIES};
use crate::bench::record::Record;
use crate::bench::{kvm, native, scale, strategies, table, vcpus};
use crate::cli::Bench;
use crate::commands::tlb;
use crate::console;
use crate::ending::{self, Status};
use crate::guest_kernel;
use crate::images::{self, Image};
use crate::machine::Machine;
use crate::payload::suite;
use crate::progress::Step;
use crate::run::{self, Flow};
use crate::setup::emulator::Emulator;
use crate::setup::guest::KvmHost;
use crate::setup::rust::Toolchain;
use crate::size::Size;
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// How long a measurement may take, unless `--timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The CPU that is measured on. `max` has FEAT_BBM level 2.
const CPU: &str = "max";
/// One that measures, and one that stands by.
const CPUS: u32 = 2;
/// Enough for a GiB to measure on.
const MEMORY: Size = Size::mib(3072);

/// Runs the command.
///
/// # Errors
/// If something can't be set up or measured.
pub fn bench(workspace: &Workspace, options: &Bench) -> Result<Status> {
    if options.native {
        let good = native::run(workspace, options.quick)?;
        return Ok(if good { Status::Success } else { Status::Failure });
    }
    if options.scale {
        return by_memory(workspace, options.renew);
    }
    if options.tlb.wanted {
        let status = tlb::tlb(workspace, options)?;
        if options.renew {
            write_documents(workspace)?;
        }
        return Ok(status);
    }
    if options.documents {
        return write_documents(workspace);
    }
    if let Some(kernel) = &options.kernel {
        guest_kernel::check(kernel, false)?;
    }
    let emulator = Emulator::find_or_install(options.qemu.as_deref())?;
    let timeout = options.timeout.unwrap_or(TIMEOUT);
    if options.strategies || options.vcpus {
        let compare = if options.vcpus { together } else { strategies };
        return compare(workspace, options, &emulator, timeout);
    }
    let stored = |path: &str| -> PathBuf { workspace.root().join(path) };
    let compared = kvm_column(workspace, options, &emulator, timeout)?;
    let images = Images::build(workspace)?;
    let machine = images.machine("auto", "bench")?;
    let with_disk = images.machine_with_disk(workspace)?;
    // On a machine of its own: with a disk each harvest asks it what it may be writing.
    let measured = |what: &str| -> Result<Result<Record, Status>> {
        let (record, disk) =
            (measure(&emulator, &machine, timeout, what)?, measure(&emulator, &with_disk, timeout, what)?);
        Ok(record.and_then(|record| disk.map(|disk| record.with_rows_of(disk))))
    };
    let record = match measured("Measuring Unbroken")? {
        Ok(record) => Record { compiler: Some(images.compiler.clone()), ..record },
        Err(status) => return Ok(status),
    };
    print!("{}", table::table(&record, &compared));
    if let Some(path) = &options.json {
        write_whole(path, &serde_json::to_vec_pretty(&[&record, &compared]).context("can't write JSON")?)?;
    }
    if options.renew {
        write_whole(&stored(BASELINE), &record.json()?)?;
        eprintln!("hv: {BASELINE} is what was measured now");
        write_documents(workspace)?;
    }
    if !options.check {
        return Ok(Status::Success);
    }

    let mut faults = check::limits(&record);
    match measured("Measuring again: a second run must give the same")? {
        Ok(again) if (&again.rows, &again.counts) == (&record.rows, &record.counts) => {}
        Ok(again) => {
            let rows = record.rows.keys().filter(|name| again.rows.get(*name) != record.rows.get(*name));
            let counts = record.counts.keys().filter(|name| again.counts.get(*name) != record.counts.get(*name));
            let names: Vec<&str> = rows.chain(counts).map(String::as_str).collect();
            faults.push(format!("two runs gave different figures: {}", names.join(", ")));
        }
        Err(status) => return Ok(status),
    }
    let baseline =
        Record::read(&stored(BASELINE)).context("the baseline is missing; make it with `cargo hv bench --renew`")?;
    match check::compare(&record, &baseline) {
        Comparison::Worse(worse) => faults.extend(worse),
        Comparison::Incomparable(why) => {
            eprintln!("hv: no comparison with {BASELINE}: {why}. The limits are checked all the same.");
        }
    }
    for fault in &faults {
        eprintln!("hv: {fault}");
    }
    println!("{}", if faults.is_empty() { "bench: passed" } else { "bench: FAILED" });
    Ok(if faults.is_empty() { Status::Success } else { Status::Failure })
}

/// Times calls by the size of the guest's memory.
fn by_memory(workspace: &Workspace, renew: bool) -> Result<Status> {
    let rows = scale::measure(workspace)?;
    print!("{}", scale::document(&rows));
    if renew {
        store(workspace, documents::SCALE, &rows)?;
        write_documents(workspace)?;
    }
    Ok(Status::Success)
}

/// Counts what first writes take by the number of CPUs that make them at once.
fn together(workspace: &Workspace, options: &Bench, emulator: &Emulator, timeout: Duration) -> Result<Status> {
    let images = Images::build(workspace)?;
    let mut figures = vcpus::Figures { contention: vcpus::contention(workspace)?, ..vcpus::Figures::default() };
    for cpus in vcpus::CPUS {
        let machine = Machine { smp: cpus, ..images.machine("auto", "bench filter=vcpus")? };
        match measure(emulator, &machine, timeout, &format!("Measuring first writes of {cpus} at once"))? {
            Ok(record) => figures.measured.push(record),
            Err(status) => return Ok(status),
        }
    }
    print!("{}", vcpus::document(&figures)?);
    if options.renew {
        store(workspace, documents::VCPUS, &figures)?;
        write_documents(workspace)?;
    }
    Ok(Status::Success)
}

/// Keeps figures.
fn store(workspace: &Workspace, path: &str, figures: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(figures).context("can't write JSON")?;
    text.push(b'\n');
    write_whole(&workspace.root().join(path), &text)
}

/// Writes the stored figures into the documents.
pub fn write_documents(workspace: &Workspace) -> Result<Status> {
    match documents::write(workspace.root())?.as_slice() {
        [] => eprintln!("hv: all documents have the stored figures"),
        changed => {
            eprintln!("hv: {} {} new figures", changed.join(", "), if changed.len() == 1 { "has" } else { "have" })
        }
    }
    Ok(Status::Success)
}

/// What KVM costs: measured now, or as stored.
fn kvm_column(workspace: &Workspace, options: &Bench, emulator: &Emulator, timeout: Duration) -> Result<Record> {
    let stored = workspace.root().join(KVM);
    if !options.kvm {
        return Record::read(&stored).context("KVM's column is missing; make it with `cargo hv bench --kvm --renew`");
    }
    let kernel = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None => KvmHost::get(workspace)?.kernel,
    };
    let record = kvm::measure(workspace, emulator, &kernel, timeout)?;
    if options.renew {
        write_whole(&stored, &record.json()?)?;
    }
    Ok(record)
}

/// Compares strategies.
fn strategies(workspace: &Workspace, options: &Bench, emulator: &Emulator, timeout: Duration) -> Result<Status> {
    let out = match &options.out {
        Some(out) => out.clone(),
        None => workspace.folder("bench")?,
    };
    std::fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    let images = Images::build(workspace)?;
    let mut records = Vec::new();
    for strategy in strategies::STRATEGIES {
        let machine = images.machine(strategy.bbm, &format!("strategy={}", strategy.word))?;
        match measure(emulator, &machine, timeout, &format!("Measuring: {}", strategy.title))? {
            Ok(record) => records.push(record),
            Err(status) => return Ok(status),
        }
    }
    print!("{}", strategies::table(&records)?);
    let picture = out.join("strategies.png");
    strategies::draw(&records, &picture)?;
    eprintln!("hv: {} shows it", picture.display());
    if options.renew {
        store(workspace, STRATEGIES, &records)?;
        write_documents(workspace)?;
    }
    Ok(Status::Success)
}

/// Runs a machine whose guest measures; or how it ended instead.
fn measure(emulator: &Emulator, machine: &Machine, timeout: Duration, what: &str) -> Result<Result<Record, Status>> {
    let step = Step::begin(what);
    let outcome = run::capture(emulator, machine, timeout, |_, _| Flow::Continue)?;
    let lines = outcome.console.lines();
    let guest = lines.iter().map(String::as_str).filter(|line| !line.starts_with(console::PREFIX));
    match (ending::judge(&outcome), Record::of_lines(guest)) {
        (Status::Success, Ok(record)) => {
            step.done("done");
            let subject = format!("Unbroken on -cpu {CPU}");
            Ok(Ok(Record { subject, qemu: emulator.version.clone(), ..record }))
        }
        (status, record) => {
            drop(step);
            let status = if status == Status::Success { Status::NoResult } else { status };
            eprintln!("{}", ending::explain(status, &outcome, timeout.as_secs()));
            if let Err(error) = record {
                eprintln!("hv: {error:#}");
            }
            Ok(Err(status))
        }
    }
}

/// The hypervisor and the payload, and the compiler that built them.
struct Images {
    hypervisor: PathBuf,
    payload: PathBuf,
    compiler: String,
}

impl Images {
    fn build(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            hypervisor: images::build(workspace, Image::Hypervisor)?,
            payload: images::build(workspace, Image::Payload)?,
            compiler: Toolchain::find_or_install(workspace)?.compiler()?,
        })
    }

    /// The same with a disk, whose rows alone are measured.
    fn machine_with_disk(&self, workspace: &Workspace) -> Result<Machine> {
        let mut machine = self.machine("auto", "bench filter=disk mediated")?;
        suite::add_disk(&mut machine, &workspace.folder("payload")?.join("disk.raw"))?;
        Ok(machine)
    }

    /// A machine that counts instructions, with what the payload is told.
    fn machine(&self, bbm: &str, bootargs: &str) -> Result<Machine> {
        let mut machine = Machine::new(&self.hypervisor);
        machine.cpu = CPU.into();
        machine.smp = CPUS;
        machine.memory = MEMORY;
        machine.icount = true;
        // The hypervisor's own accounting (icount=on) would be measured too.
        machine.append = format!("log=warn hypercalls=on bbm={bbm}");
        machine.load_guest(&self.payload, None, bootargs)?;
        Ok(machine)
    }
}
