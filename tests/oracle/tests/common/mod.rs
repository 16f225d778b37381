//! What the tests share: machines to try, a world of addresses to work in, and a driver that does what it is told.
#![expect(dead_code, reason = "each test binary uses a part of it")]

use core::cell::Cell;
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner};
use stage2::features::HardwareUpdate;
use stage2::*;
use stage2_oracle::Setup;
use std::sync::Once;

pub mod driver;
pub mod logs;
pub mod operations;
pub mod scenes;
pub mod traces;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

pub fn range(start: u64, end: u64) -> IpaRange {
    IpaRange::new(Ipa(start), Ipa(end)).expect("whole pages in order")
}

pub fn vmid() -> Vmid {
    Vmid::new(7).expect("not 0")
}

/// One kind of machine, and how the engine is set up on it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub bbm: BbmLevel,
    pub contiguous: bool,
    pub hardware_dirty: bool,
    pub ipa_bits: u8,
    pub tlbi_range: bool,
}

impl Machine {
    pub const LEVELS: [BbmLevel; 4] = [BbmLevel::Level0, BbmLevel::Level1, BbmLevel::Level2, BbmLevel::Level3];

    pub fn config(self) -> Config {
        let features = Features::MINIMAL
            .with_pa_bits(52)
            .with_bbm(self.bbm)
            .with_hardware_update(if self.hardware_dirty { HardwareUpdate::DirtyState } else { HardwareUpdate::None })
            .with_tlbi_range(self.tlbi_range)
            .with_vmid_bits(16)
            .with_lse(true)
            .with_fwb(true)
            .with_xnx(true)
            .with_granule::<Granule16K>(true)
            .with_granule::<Granule64K>(true)
            .with_granule::<Granule4KLpa2>(true)
            .with_granule::<Granule16KLpa2>(true);
        Config::new(vmid(), features)
            .with_ipa_bits(self.ipa_bits)
            .with_contiguous(self.contiguous)
            .with_fwb(self.fwb())
            .with_hardware_dirty(self.hardware_dirty)
    }

    pub fn setup(self) -> Setup {
        Setup {
            hardware_dirty: self.hardware_dirty,
            // Half of the machines.
            conflicts: self.tlbi_range,
            mark_rate: if self.hardware_dirty { 64 } else { 0 },
            ..Setup::new(self.bbm)
        }
    }

    /// HCR_EL2.FWB: on half of the machines.
    pub fn fwb(self) -> bool {
        matches!(self.ipa_bits, 32 | 43)
    }

    /// An address that many things meet at: a block, a 1 GiB block and, where there are several, two root tables begin
    /// there; one GiB of IPA space lies below and one above.
    pub fn middle<G: Granule>(self) -> u64 {
        match (G::SHIFT, self.ipa_bits) {
            (12, 32..40) => 3 * GIB,
            (12, 40..44) => 512 * GIB,
            (14, 37..=40) => 1 << 36,
            (16, 43..=46) => 1 << 42,
            (_, bits) => 1 << (bits - 1),
        }
    }
}

/// Sizes of a granule's, which ranges are made of.
#[derive(Clone, Copy, Debug)]
pub struct Units {
    pub page: u64,
    pub pages_run: u64,
    pub block: u64,
    pub blocks_run: u64,
    /// A few of the largest leaves.
    pub large: u64,
    /// Added to an address, what makes it one of more than 48 bits; 0 where addresses have no more.
    pub high: u64,
    /// Pages of the blocks around the middle that most operations are in: fewer blocks where these have more pages.
    pub near: u64,
}

pub fn units<G: Granule>() -> Units {
    let [pages_run, block, blocks_run] =
        [LeafSize::Contiguous64K, LeafSize::Block2M, LeafSize::Contiguous32M].map(|size| size.bytes_of::<G>());
    let near = if G::SHIFT == 12 { 8 } else { 2 } * block;
    let (large, high) = match (G::SHIFT, G::ADDRESS_BITS) {
        (_, 48) => (blocks_run.max(GIB), 0),
        (12, _) => (LeafSize::Block512G.bytes(), 6 << 48),
        _ => (LeafSize::Block1G.bytes_of::<G>(), 6 << 48),
    };
    Units { page: G::BYTES, pages_run, block, blocks_run, large, high, near: near / G::BYTES }
}

/// The seed of all random choices: `ORACLE_SEED`, or the same as ever.
pub fn seed() -> u64 {
    match std::env::var("ORACLE_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("ORACLE_SEED={text} is no number")),
        Err(_) => 0x5eed,
    }
}

/// The full number of cases in CI, where `CI` is set, and a tenth elsewhere; `ORACLE_RUNS` multiplies it.
pub fn scaled(cases: u32) -> u32 {
    let more = std::env::var("ORACLE_RUNS").map_or(1, |text| text.parse().expect("ORACLE_RUNS is a number"));
    more * if std::env::var_os("CI").is_some() { cases } else { cases.div_ceil(10) }
}

/// Runs `test` on `cases` values of `strategy`, and shrinks the first that fails.
pub fn property<S: Strategy>(name: &str, cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let seed = seed();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    for (place, byte) in bytes[8..].iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    let config = RunnerConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..RunnerConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    println!("{name}: {cases} cases, ORACLE_SEED={seed}");
    // While a failure is shrunk, each smaller one fails too: only the last is worth reading.
    static HOOK: Once = Once::new();
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let result = runner.run(&strategy, |value| {
        test(value);
        Ok(())
    });
    QUIET.set(false);
    if let Err(error) = result {
        panic!("{name} failed; ORACLE_SEED={seed} repeats it\n{error}");
    }
}
