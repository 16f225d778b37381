//! What all CPUs share, and how a CPU takes up the partitions' tables.

use crate::baseline::Baseline;
use crate::console::say;
use crate::cpu;
use crate::machine::Board;
use crate::options::{self, Options};
use crate::platform::{PLATFORM, Platform};
use core::sync::atomic::AtomicU64;
use secure_partition::Partition;
use secure_partition::layout::CPUS;
use secure_partition::service::Service;
use secure_partition::tables::Tables;
use spin::{Once, RwLock};
use stage2::aarch64::{self, Regime, Secure, SecureNonSecureIpa};
use stage2::secure::{SecureControl, Spaces};
use stage2::vmid::{Lease, Vmids};
use stage2::{Config, Features, LeafSize, Stage2};

/// What each CPU can do.
pub static FEATURES: [Once<Features>; CPUS] = [const { Once::new() }; CPUS];
/// Donations, loans, shares and pages moved, of all CPUs.
pub static MOVED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// What all CPUs share.
#[derive(Debug)]
pub struct Spm {
    /// Memory moving between the partitions.
    pub service: Service<Board>,
    /// The partitions' Non-secure IPA spaces: empty, for both.
    non_secure: Stage2<Platform>,
    vmids: RwLock<Vmids<CPUS, 4>>,
    leases: [Lease; 2],
    /// What was asked for.
    pub options: Options,
    /// What must be so again at the end.
    pub baseline: Baseline,
}

impl Spm {
    /// Makes the partitions' tables, as the features of all CPUs allow.
    pub fn new() -> Self {
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
        let empty = Config::new(numbers[0], features).with_ipa_bits(32).with_largest(LeafSize::Page);
        let made = Stage2::new(PLATFORM, empty)
            .and_then(|non_secure| Ok((non_secure, Tables::new([PLATFORM; 2], numbers, features)?)));
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
    pub fn load_control(&self) {
        let secure = self.service.world().tables.of(Partition::First).read().vtcr();
        let control = SecureControl::new(secure, Spaces::SECURE, self.non_secure.vtcr(), Spaces::NORMAL_WORLD);
        let Some(control) = control else { panic!("the Secure and the Non-secure IPA spaces contradict each other") };
        // SAFETY: the values are those of the tables that `load_tables` loads. QEMU's `max` has FEAT_SEL2, or EL3 would
        // not have come here with SCR_EL3.EEL2 set.
        unsafe { aarch64::set_secure_control(control) };
    }

    /// Makes the partition's tables this CPU's.
    pub fn load_tables(&self, partition: Partition, cpu: usize) {
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
