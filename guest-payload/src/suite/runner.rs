//! The runner: each test by itself, with a time limit, and everything put back after it.

use crate::calls::{hypercall, services};
use crate::machine::escape::Escape;
use crate::machine::report::{self, Stop};
use crate::machine::{self, exceptions, memory, mmu, smp, timer};
use crate::options;
use crate::suite::group::{Group, Test};
use crate::suite::tests::{GROUPS, MUST_FAIL};
use core::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
struct Totals {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// Runs what the command line asks for, and prints the last line.
pub fn run() {
    let options = options::get();
    banner();
    smp::init();
    if let Err(index) = smp::restore() {
        // This is not fatal: the tests that need the CPU say what is wrong with it.
        println!("payload: cpu {index} did not start");
    }
    let groups: &[Group] = if options.must_fail { &MUST_FAIL } else { &GROUPS };
    let mut totals = Totals::default();
    let mut skipping = !options.after.is_empty();
    for group in groups {
        for test in group.tests {
            let name = Name(group, test);
            if !name.contains(options.filter) {
                continue;
            }
            if skipping {
                skipping = !name.is(options.after);
                continue;
            }
            if options.list {
                println!("{}::{}", group.name, test.name);
            } else {
                run_test(group, test, &mut totals);
            }
        }
    }
    if skipping {
        println!("payload: there is no test \"{}\" to go on after", options.after);
        totals.failed = 1;
    } else if totals.passed + totals.failed + totals.skipped == 0 && !options.list && options.after.is_empty() {
        println!("payload: no test's name contains \"{}\"", options.filter);
        totals.failed = 1;
    }
    print!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.skipped > 0 {
        print!(", {} skipped", totals.skipped);
    }
    println!("");
}

fn banner() {
    let machine = machine::get();
    let bytes: u64 = machine.ram().iter().map(|range| range.end - range.start).sum();
    let gic = if matches!(machine.gic, machine::GicRegisters::V2 { .. }) { "GICv2" } else { "GICv3" };
    let hypervisor = if hypercall::present() { "under Unbroken" } else { "no hypervisor" };
    println!(
        "payload: {} CPUs (MIDR {:#x}), {} MiB, {gic}, {hypervisor}, seed={:#x}",
        smp::count(),
        read_sysreg!("MIDR_EL1"),
        bytes >> 20,
        options::get().seed
    );
}

/// The full name of a test.
struct Name<'a>(&'a Group, &'a Test);

impl Name<'_> {
    /// Whether `group::name` is `text`.
    fn is(&self, text: &str) -> bool {
        text.split_once("::") == Some((self.0.name, self.1.name))
    }

    /// Whether `group::name` contains `text`.
    fn contains(&self, text: &str) -> bool {
        let parts = [self.0.name, "::", self.1.name];
        let length = parts.iter().map(|part| part.len()).sum();
        let mut buffer = [0; 128];
        let mut filled = 0;
        for part in parts {
            buffer[filled..filled + part.len()].copy_from_slice(part.as_bytes());
            filled += part.len();
        }
        core::str::from_utf8(&buffer[..length]).is_ok_and(|name| name.contains(text))
    }
}

/// Outcomes as the number that `catch` passes on.
const PASSED: u64 = 0;
const FAILED: u64 = 1;
const SKIPPED: u64 = 2;

/// Length and address of the reason, when the outcome is `SKIPPED`.
static REASON: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

unsafe extern "C" fn trampoline(test: u64, _: u64) -> u64 {
    // SAFETY: `run_test` passes the address of a `Test` in a constant.
    let test = unsafe { &*(test as *const Test) };
    match (test.run)() {
        Ok(()) => PASSED,
        Err(Stop::Failed) => FAILED,
        Err(Stop::Skipped(reason)) => {
            REASON[0].store(reason.as_ptr() as u64, Ordering::Relaxed);
            REASON[1].store(reason.len() as u64, Ordering::Relaxed);
            SKIPPED
        }
    }
}

fn reason() -> &'static str {
    let [start, length] = [0, 1].map(|index| REASON[index].load(Ordering::Relaxed));
    // SAFETY: `trampoline` took both from a `&'static str`.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, length as usize) };
    core::str::from_utf8(bytes).unwrap_or("a reason that is no text")
}

fn run_test(group: &Group, test: &Test, totals: &mut Totals) {
    print!("test {}::{} ... ", group.name, test.name);
    report::clear();
    let mark = memory::mark();
    let counters = services::AllCounters::now();
    // Some tests go on for as long as the command line says.
    let limit = test.limit * options::get().timeout + options::get().storm;
    timer::start_watch(limit * 1000);
    // SAFETY: `trampoline` gets what it asks for; tests keep the rules of `catch`.
    let result = unsafe { exceptions::catch(trampoline, core::ptr::from_ref(test) as u64, 0) };
    timer::stop_watch();
    match result {
        Err(Escape::Timeout) => report::failure(format_args!("still running after {limit} s")),
        Err(why) => report::failure(format_args!("unexpected {why}")),
        Ok(FAILED) if report::failures() == 0 => report::failure(format_args!("failed without saying why")),
        Ok(_) => {}
    }
    if let Err(index) = smp::restore() {
        report::failure(format_args!("cpu {index} does not come back"));
    }
    mmu::clear_alias();
    if report::failures() > 0 {
        counters.report();
    }
    services::reset();
    memory::release_to(&mark);
    if report::failures() > 0 {
        totals.failed += 1;
        println!("FAILED");
        report::print_lines();
    } else if result == Ok(SKIPPED) {
        totals.skipped += 1;
        println!("skipped: {}", reason());
    } else {
        totals.passed += 1;
        println!("ok");
    }
}
