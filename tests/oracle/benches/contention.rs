//! How often first writes of several PEs get into each other's way, when the scheduler may switch at every load and store of a
//! descriptor. That is far more often than CPUs ever meet: what is counted bounds what they see.
//!
//! One line for each place that is written to and each number of PEs: faults, compare-exchanges that another PE made fail, faults that
//! found their work done.
//!
//! ```text
//! contention: PLACE PES FAULTS LOST SPURIOUS
//! ```

use core::sync::atomic::AtomicU64;
use stage2::*;
use stage2_oracle::schedule::{Body, Random, run};
use stage2_oracle::{Checked, Model, Setup};

const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const BASE: u64 = 4 * GIB;
/// First writes of each PE.
const STORES: u64 = 16;
/// Orders that are tried, each drawn from a seed.
const ORDERS: u64 = 200;

/// The first write of `pe` number `store`.
type Place = fn(pes: u64, pe: u64, store: u64) -> Ipa;

const PLACES: [(&str, Place); 3] = [
    ("one-block", |pes, pe, store| Ipa(BASE + (store * pes + pe) * PAGE_SIZE)),
    ("side-by-side", |_, pe, store| Ipa(BASE + pe * BLOCK + store * PAGE_SIZE)),
    ("far-apart", |_, pe, store| Ipa(BASE + pe * GIB + store * PAGE_SIZE)),
];

/// Tries one order, and adds faults, lost exchanges and faults without work to `counts`.
fn order(pes: u8, place: Place, seed: u64, counts: &mut [u64; 3]) {
    let model = Model::new(Setup { pes: pes.into(), seed, ..Setup::new(BbmLevel::Level2) });
    let features = Features::MINIMAL.with_pa_bits(48).with_bbm(BbmLevel::Level2).with_tlbi_range(true).with_lse(true);
    let config = Config::new(Vmid::new(1).expect("not 0"), features).with_ipa_bits(40).with_contiguous(false);
    let mut table = Checked::new(&model, config).expect("a table");
    // Of each GiB the first ones, so that they are blocks of 2 MiB.
    let parts = (0..u64::from(pes))
        .map(|gib| IpaRange::from_size(Ipa(BASE + gib * GIB), u64::from(pes) * BLOCK).expect("whole blocks"));
    for part in parts {
        table.map(part, PhysAddr(part.start().0), Attributes::RAM).expect("a mapping");
    }
    let logged = IpaRange::from_size(Ipa(BASE), u64::from(pes) * GIB).expect("whole blocks");
    let words: Box<[AtomicU64]> = (0..Layout::new(logged).words()).map(|_| AtomicU64::new(0)).collect();
    let storage: &'static [AtomicU64] = Box::leak(words);
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let log = table.start_log(logged, storage, options).expect("a log");
    let count = |event| (0..pes).map(|pe| model.counters_of(pe).get(event)).sum::<u64>();
    let events = [Event::FaultPermission, Event::CasRetry, Event::FaultSpurious];
    let before = events.map(count);
    let bodies = (0..pes).map(|pe| -> Body<'_> {
        let table = &table;
        (
            pe,
            Box::new(move || {
                let mut history = FaultHistory::new();
                for store in 0..STORES {
                    table.store(place(pes.into(), pe.into(), store), &mut history).expect("a write that goes through");
                }
            }),
        )
    });
    run(&model, bodies.collect(), &mut Random::new(seed));
    model.set_pe(0);
    for (sum, (event, before)) in counts.iter_mut().zip(events.into_iter().zip(before)) {
        *sum += count(event) - before;
    }
    let storage = table.stop_log_keeping_pages(log).expect("the log's own words");
    // SAFETY: the words were leaked above, and the engine has given them back.
    drop(unsafe { Box::from_raw(core::ptr::from_ref(storage).cast_mut()) });
    table.release();
    model.assert_clean();
}

fn main() {
    for (name, place) in PLACES {
        for pes in [1, 2, 4] {
            let mut counts = [0; 3];
            (0..ORDERS).for_each(|seed| order(pes, place, seed, &mut counts));
            println!("contention: {name} {pes} {} {} {}", counts[0], counts[1], counts[2]);
        }
    }
}
