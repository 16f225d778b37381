//! The secure-partition manager: EL3 stub, S-EL2, two partitions on two CPUs.
#![no_std]
#![no_main]

mod console;
mod context;
mod cpu;
mod machine;
mod options;
mod platform;
mod report;
mod runner;
mod semihosting;

use crate::console::say;
use crate::machine::Board;
use crate::options::Options;
use crate::platform::Platform;
use crate::report::Baseline;
use crate::runner::Runner;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use secure_partition::Partition;
use secure_partition::layout::CPUS;
use secure_partition::service::Service;
use secure_partition::tables::Tables;
use secure_partition::work::Order;
use spin::{Once, RwLock};
use stage2::aarch64::{self, Regime, Secure, SecureNonSecureIpa};
use stage2::secure::{SecureControl, Spaces};
use stage2::vmid::{Lease, Vmids};
use stage2::{Config, Features, LeafSize, Stage2};

global_asm!(include_str!("boot.S"));

/// What all CPUs share.
#[derive(Debug)]
struct Spm {
    service: Service<Board>,
    /// The partitions' Non-secure IPA spaces: empty, for both.
    non_secure: Stage2<Platform>,
    vmids: RwLock<Vmids<CPUS, 4>>,
    leases: [Lease; 2],
    options: Options,
    baseline: Baseline,
}

static FEATURES: [Once<Features>; CPUS] = [const { Once::new() }; CPUS];
static SPM: Once<Spm> = Once::new();
static READY: AtomicUsize = AtomicUsize::new(0);
static GO: AtomicUsize = AtomicUsize::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);
/// Donations, loans, shares and pages moved, of all CPUs.
static MOVED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Where every CPU comes from boot.S, with the MMU on and a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn main(cpu: usize) -> ! {
    cpu::set_up();
    FEATURES[cpu].call_once(cpu::features);
    let spm = if cpu == 0 { SPM.call_once(Spm::new) } else { SPM.wait() };
    spm.load_control();
    let mut runner = Runner::new(spm, cpu);
    READY.fetch_add(1, Ordering::AcqRel);
    if cpu != 0 {
        wait_for(&GO, 1);
        drive(&mut runner, spm, cpu);
        FINISHED.fetch_add(1, Ordering::AcqRel);
        loop {
            core::hint::spin_loop();
        }
    }
    wait_for(&READY, CPUS);
    let refused = runner::judge(Partition::First, runner.order(Partition::First, Order::TryRefusals));
    if let Some([trials, ..]) = refused {
        say!("{trials} requests refused as they must be");
    }
    GO.store(1, Ordering::Release);
    drive(&mut runner, spm, cpu);
    FINISHED.fetch_add(1, Ordering::AcqRel);
    wait_for(&FINISHED, CPUS);
    let passed = report::print(spm) && refused.is_some();
    say!("end: {}", if passed { "passed" } else { "failed" });
    semihosting::exit(u8::from(!passed));
}

/// Each CPU has another partition move its memory; the other one's context on the same CPU receives it.
fn drive(runner: &mut Runner, spm: &Spm, cpu: usize) {
    let partition = Partition::ALL[cpu % Partition::ALL.len()];
    let moves = spm.options.moves / CPUS as u64;
    let order = Order::Drive { moves, seed: spm.options.seed.wrapping_add(cpu as u64) };
    match runner::judge(partition, runner.order(partition, order)) {
        Some(counts) => {
            for (total, count) in MOVED.iter().zip(counts) {
                total.fetch_add(count, Ordering::AcqRel);
            }
        }
        None => report::fail(),
    }
}

fn wait_for(counter: &AtomicUsize, value: usize) {
    while counter.load(Ordering::Acquire) < value {
        core::hint::spin_loop();
    }
}

impl Spm {
    fn new() -> Self {
        let options = Options::read();
        let features = FEATURES.iter().map(|features| *features.wait()).reduce(Features::weakest);
        let features = options.apply(features.unwrap_or_else(cpu::features));
        let mut vmids = Vmids::new(features.vmid_bits);
        let leases = [Lease::new(), Lease::new()];
        // Nothing that another program left behind may be found under the new numbers.
        aarch64::invalidate_all_vmids();
        let mut vmid = |lease| vmids.renew(0, lease, aarch64::invalidate_all_vmids);
        let numbers = [vmid(&leases[0]), vmid(&leases[1])];
        // Of all tables, this one alone has no VMID to call its own: it is used under either, and never changes.
        let empty = Config { ipa_bits: 32, largest: LeafSize::Page, ..Config::new(numbers[0], features) };
        let made = Stage2::new(Platform, empty)
            .and_then(|non_secure| Ok((non_secure, Tables::new([Platform; 2], numbers, features)?)));
        let (non_secure, tables) = match made {
            Ok(made) => made,
            Err(error) => panic!("the partitions' tables can't be made: {error}"),
        };
        let baseline = Baseline::of(&tables);
        say!("S-EL2 with {CPUS} CPUs; sizes change {}", options::describe(features.bbm));
        Self {
            service: Service::new(Board { tables }),
            non_secure,
            vmids: RwLock::new(vmids),
            leases,
            options,
            baseline,
        }
    }

    /// Loads what is the same for all contexts into this CPU's registers.
    fn load_control(&self) {
        let secure = self.service.world().tables.of(Partition::First).read().vtcr();
        let control = SecureControl::new(secure, Spaces::SECURE, self.non_secure.vtcr(), Spaces::NORMAL_WORLD);
        let Some(control) = control else { panic!("the Secure and the Non-secure IPA spaces contradict each other") };
        // SAFETY: the values are those of the tables that `load_tables` loads. QEMU's `max` has FEAT_SEL2, or EL3 would
        // not have come here with SCR_EL3.EEL2 set.
        unsafe { aarch64::set_secure_control(control) };
    }

    /// Makes the partition's tables this CPU's.
    fn load_tables(&self, partition: Partition, cpu: usize) {
        let lease = &self.leases[partition.index()];
        let current = self.vmids.read().current(cpu, lease);
        let vmid = current.unwrap_or_else(|| self.vmids.write().renew(cpu, lease, aarch64::invalidate_all_vmids));
        let table = self.service.world().tables.of(partition);
        if table.read().config().vmid != vmid {
            // The VMIDs were made for the features that the table has, so that it takes them all.
            let _ = table.write().set_vmid(vmid);
        }
        // SAFETY: the table lives as long as the machine, and no partition runs on this CPU now. The exception return into
        // the partition synchronises the registers.
        unsafe { SecureNonSecureIpa::set_table(self.non_secure.vttbr()) };
        // SAFETY: as above.
        unsafe { Secure::set_table(table.read().vttbr()) };
    }
}

/// An exception of the SPM's own, which is a fault of the SPM's.
#[unsafe(no_mangle)]
extern "C" fn own_exception(vector: u64) -> ! {
    let [esr, elr, far] = cpu::syndrome();
    panic!("exception {vector} in the SPM: ESR_EL2 {esr:#x}, ELR_EL2 {elr:#x}, FAR_EL2 {far:#x}");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("panic on CPU {}: {info}", cpu::index());
    say!("end: failed");
    semihosting::exit(2);
}
