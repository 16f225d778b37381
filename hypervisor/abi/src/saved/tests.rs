//! Damage of every kind is found, and what is whole is read as it was written.

extern crate std;

use super::*;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;

const RAM: (u64, u64) = (0x4000_0000, 0x4100_0000);
const PAGE: u64 = RAM.0 / BLOCK_BYTES;

fn run(page: u64, count: u64, zero: bool) -> Run {
    Run { page: PAGE + page, count, zero }
}

/// A file in the making.
#[derive(Default)]
struct File {
    blocks: Vec<Block>,
    /// Where each record begins.
    begins: Vec<usize>,
}

impl File {
    fn record(&mut self, kind: Kind, bytes: u64, runs: &[Run], payload: &[Block]) {
        let mut checksum = Checksum::new();
        payload.iter().for_each(|block| checksum.add(block));
        let header = Header { kind, number: self.begins.len() as u64, bytes, checksum: checksum.value() };
        self.begins.push(self.blocks.len());
        self.blocks.push(header.encode(runs));
        self.blocks.extend_from_slice(payload);
    }

    fn pages(&mut self, runs: &[Run], fill: u64) {
        let pages = runs.iter().map(|run| run.in_payload()).sum::<u64>();
        let payload: Vec<Block> = (0..pages).map(|page| [fill + page; WORDS]).collect();
        self.record(Kind::Pages, pages * BLOCK_BYTES, runs, &payload);
    }

    fn end(&mut self) {
        let end = End { records: self.begins.len() as u64 + 1, hash: 77 };
        self.record(Kind::End, End::BYTES, &[], &[end.block()]);
    }

    fn check(&self) -> Result<Contents, Error> {
        check(|number, block| {
            let found = self.blocks.get(number as usize);
            found.inspect(|found| *block = **found).is_some()
        })
    }

    fn damage(&self) -> Damage {
        self.check().unwrap_err().damage
    }
}

fn machine() -> Vec<Fact> {
    [
        Fact::new(Field::Version, version_word("0.1.0")),
        Fact::new(Field::Ranges, 1),
        Fact::new(Field::RamStart, RAM.0),
        Fact::new(Field::RamEnd, RAM.1),
        Fact::of_cpu(1, 2, 0x11),
    ]
    .into()
}

fn begin() -> File {
    let mut file = File::default();
    file.record(Kind::Tool, TOOL_BLOCKS * BLOCK_BYTES, &[], &[[5; WORDS]; TOOL_BLOCKS as usize]);
    let words: Vec<u64> = machine().into_iter().flat_map(Fact::words).collect();
    let mut block = [0; WORDS];
    block[..words.len()].copy_from_slice(&words);
    file.record(Kind::Machine, words.len() as u64 * 8, &[], &[block]);
    file
}

fn whole() -> File {
    let mut file = begin();
    file.pages(&[run(0, 2, false), run(2, 9, true), run(20, 1, false)], 1);
    file.pages(&[run(0, 1, true)], 0);
    let (mut bytes, mut used) = ([0; BLOCK_BYTES as usize], 0);
    assert!(push_item(&mut bytes, &mut used, 3, b"CPU 0"));
    let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    file.record(Kind::State, used as u64, &[], &[words.try_into().unwrap()]);
    file.end();
    file
}

#[test]
fn a_whole_file_is_taken() {
    let file = whole();
    let blocks = file.blocks.len() as u64;
    assert_eq!(file.check(), Ok(Contents { blocks, pages: 3, zero_pages: 10, hash: 77 }));
    let found: Vec<Run> = runs(&file.blocks[file.begins[2]]).collect();
    assert_eq!(found, [run(0, 2, false), run(2, 9, true), run(20, 1, false)]);
}

#[test]
fn a_file_that_is_cut_off_is_refused_wherever() {
    let file = whole();
    for blocks in 0..file.blocks.len() {
        let short = File { blocks: file.blocks[..blocks].into(), begins: Vec::new() };
        assert_eq!(short.damage(), Damage::CutOff, "with {blocks} blocks");
    }
    let mut long = whole();
    long.blocks.push([0; WORDS]);
    assert_eq!(long.damage(), Damage::GoesOn);
}

#[test]
fn each_bit_of_a_header_counts_and_one_of_each_word_of_a_payload() {
    let file = whole();
    for block in 0..file.blocks.len() {
        let is_header = file.begins.contains(&block);
        for word in 0..WORDS {
            for bit in 0..64 {
                // Of a header every bit of the fields and of the first runs; elsewhere another bit of each word.
                if if is_header && word < 12 { false } else { bit != word % 64 } {
                    continue;
                }
                let mut damaged = File { blocks: file.blocks.clone(), begins: Vec::new() };
                damaged.blocks[block][word] ^= 1 << bit;
                let error = damaged.check().expect_err("damage");
                let expected: &[Damage] = match (is_header, word, bit) {
                    (true, 0, _) => &[Damage::Foreign],
                    (true, 1, 0..32) => &[Damage::Format(FORMAT ^ 1 << bit)],
                    (true, ..) => &[Damage::Header],
                    _ => &[Damage::Payload],
                };
                assert!(expected.contains(&error.damage), "block {block}, word {word}, bit {bit}: {error}");
            }
        }
    }
}

#[test]
fn records_out_of_order_are_refused() {
    let order = |kinds: &[Kind]| {
        let mut file = begin();
        for kind in kinds {
            match kind {
                Kind::Pages => file.pages(&[run(0, 1, false)], 1),
                Kind::End => file.end(),
                kind => file.record(*kind, 8, &[], &[[1; WORDS]]),
            }
        }
        file.check()
    };
    use Kind::*;
    assert!(order(&[Pages, Pages, State, State, End]).is_ok());
    assert!(order(&[State, End]).is_ok());
    for kinds in [&[State, Pages, End][..], &[Machine, End], &[Tool, End], &[Pages, Machine, End]] {
        let damage = order(kinds).unwrap_err().damage;
        assert!(matches!(damage, Damage::Order { .. }), "{kinds:?}: {damage:?}");
    }
    assert_eq!(File::default().damage(), Damage::CutOff);

    // One left out, one twice, two in each other's place: the numbers tell.
    let file = whole();
    let record = |number: usize| {
        let end = file.begins.get(number + 1).copied().unwrap_or(file.blocks.len());
        file.blocks[file.begins[number]..end].to_vec()
    };
    for numbers in [&[0, 1, 3, 4, 5][..], &[0, 1, 2, 2, 3, 4, 5], &[0, 1, 3, 2, 4, 5], &[1, 2, 3, 4, 5]] {
        let blocks = numbers.iter().flat_map(|&number| record(number)).collect();
        let damage = File { blocks, begins: Vec::new() }.damage();
        assert!(matches!(damage, Damage::Order { .. }), "{numbers:?}: {damage:?}");
    }
}

#[test]
fn an_end_must_count_right() {
    let mut file = begin();
    let end = End { records: 9, hash: 0 };
    file.record(Kind::End, End::BYTES, &[], &[end.block()]);
    assert_eq!(file.damage(), Damage::Records(9));
}

#[test]
fn a_foreign_file_is_named_as_such() {
    let mut file = whole();
    file.blocks[0] = [0x7f45_4c46; WORDS];
    let error = file.check().unwrap_err();
    assert_eq!((error.damage, error.to_string()), (Damage::Foreign, String::from("it is no saved machine")));
    let mut file = whole();
    file.blocks[0][1] += 1;
    assert!(file.check().unwrap_err().to_string().contains("format 2"));
}

#[test]
fn runs_that_cannot_be_are_refused() {
    let with = |runs: &[Run]| {
        let mut file = begin();
        file.pages(runs, 1);
        file.end();
        file.check().map_err(|error| error.damage)
    };
    let last = (RAM.1 - RAM.0) / BLOCK_BYTES;
    assert!(with(&[run(0, 1, false), run(1, 1, false), run(last - 1, 1, true)]).is_ok());
    for outside in [run(last - 1, 2, true), run(last, 1, false), Run { page: PAGE - 1, count: 1, zero: false }] {
        assert_eq!(with(&[outside]), Err(Damage::NotRam(outside)));
    }
    let end = Run { page: (1 << 40) - 1, count: Run::MAX_COUNT, zero: true };
    assert_eq!(with(&[end]), Err(Damage::NotRam(end)));
    for overlapping in [
        &[run(0, 2, false), run(1, 1, false)][..],
        &[run(4, 1, true), run(0, 1, true)],
        &[run(3, 0, true)],
        &[run(0, 1, false), run(0, 1, true)],
        &[],
    ] {
        assert_eq!(with(overlapping), Err(Damage::Impossible), "{overlapping:?}");
    }

    // More pages than the payload has, or fewer; runs where there are none; more payload than any record has.
    let refused = |kind, bytes, runs: &[Run], blocks: usize| {
        let mut file = begin();
        file.record(kind, bytes, runs, &std::vec![[0; WORDS]; blocks]);
        file.end();
        file.damage()
    };
    assert_eq!(refused(Kind::Pages, 2 * BLOCK_BYTES, &[run(0, 1, false)], 2), Damage::Impossible);
    assert_eq!(refused(Kind::Pages, BLOCK_BYTES, &[run(0, 2, false)], 1), Damage::Impossible);
    assert_eq!(refused(Kind::Pages, BLOCK_BYTES - 1, &[run(0, 1, false)], 1), Damage::Impossible);
    assert_eq!(refused(Kind::State, BLOCK_BYTES, &[run(0, 1, true)], 1), Damage::Impossible);
    let most = MAX_BLOCKS + 1;
    assert_eq!(refused(Kind::State, most * BLOCK_BYTES, &[], most as usize), Damage::Impossible);
    let most = MAX_PAGES + 1;
    assert_eq!(refused(Kind::Pages, most * BLOCK_BYTES, &[run(0, most, false)], most as usize), Damage::Impossible);
    assert_eq!(refused(Kind::State, u64::MAX, &[], 1), Damage::Impossible);
}

#[test]
fn the_first_difference_is_told() {
    assert_eq!(first_difference(machine(), machine()), None);
    let tell = |change: fn(&mut Vec<Fact>)| {
        let mut here = machine();
        change(&mut here);
        first_difference(machine(), here).unwrap().to_string()
    };
    assert_eq!(
        tell(|facts| facts[4].value = 0x12),
        "ID_AA64PFR0_EL1 of CPU 1 was 0x11 where it was saved, and is 0x12 here"
    );
    assert_eq!(
        tell(|facts| facts[0].value = version_word("0.2.0")),
        "the hypervisor's version was 0.1.0 where it was saved, and is 0.2.0 here"
    );
    assert!(tell(|facts| facts.truncate(4)).ends_with("was 0x11 where it was saved, and is not here"));
    assert!(tell(|facts| facts.push(Fact::new(Field::Clock, 0x900))).contains("real-time clock is 0x900 here"));
}

#[test]
fn items_are_found_or_refused_whole() {
    let (mut bytes, mut used) = ([0xff; 64], 0);
    assert!(push_item(&mut bytes, &mut used, 1, b"") && push_item(&mut bytes, &mut used, 0xffff, b"123456789"));
    assert_eq!(used, 32);
    assert!(!push_item(&mut bytes, &mut used, 2, &[0; 25]) && used == 32, "there is room for 24 bytes");
    assert!(push_item(&mut bytes, &mut used, 2, &[9; 24]) && used == 64);
    let found: Vec<_> = items(&bytes).collect();
    assert_eq!(found, [Some((1, &b""[..])), Some((0xffff, b"123456789")), Some((2, &[9; 24]))]);
    for (place, value) in [(2, 1), (31, 1), (15, 0xff)] {
        let mut damaged = bytes;
        damaged[place] = value;
        assert_eq!(items(&damaged).last(), Some(None));
    }
    assert_eq!(items(&bytes[..12]).last(), Some(None));
}

/// Runs in order, apart from each other, with no more pages in the payload than a record may have.
fn some_runs() -> impl Strategy<Value = Vec<Run>> {
    proptest::collection::vec((0..20u64, 1..9u64, any::<bool>()), 1..40).prop_map(|steps| {
        let mut next = 0;
        let place = |(gap, count, zero)| {
            let run = run(next + gap, count, zero);
            next += gap + count;
            run
        };
        steps.into_iter().map(place).collect()
    })
}

proptest! {
    /// What is written is read: the pages of all records in their order, the last of each counting.
    #[test]
    fn what_is_written_is_read(records in proptest::collection::vec((some_runs(), any::<u32>()), 0..6)) {
        let mut file = begin();
        for (runs, fill) in &records {
            file.pages(runs, u64::from(*fill));
        }
        file.end();
        let contents = file.check().unwrap();
        let all = |zero: bool| records.iter().flat_map(|(runs, _)| runs).filter(move |run| run.zero == zero).map(|run| run.count);
        prop_assert_eq!((contents.pages, contents.zero_pages), (all(false).sum(), all(true).sum()));

        let mut order = Order::after_tool();
        let mut read = Vec::new();
        while !order.is_over() {
            let at = order.block() as usize;
            let header = Header::decode(&file.blocks[at]).unwrap();
            order.accept(&header).unwrap();
            if header.kind == Kind::Pages {
                let pages = &file.blocks[at + 1..order.block() as usize];
                read.push((runs(&file.blocks[at]).collect::<Vec<_>>(), pages.first().map(|page| page[0])));
            }
        }
        let fills = |(runs, fill): &(Vec<Run>, u32)| {
            (runs.clone(), runs.iter().any(|run| !run.zero).then_some(u64::from(*fill)))
        };
        prop_assert_eq!(read, records.iter().map(fills).collect::<Vec<_>>());
    }

    /// No block is anything but a header that holds what it promises, or refused.
    #[test]
    fn no_block_breaks_the_reader(words in proptest::collection::vec(any::<u64>(), 0..16), sign in any::<bool>()) {
        let mut block = [0; WORDS];
        block[..words.len()].copy_from_slice(&words);
        if sign {
            block[0] = MAGIC;
            block[1] = u64::from(FORMAT) | (block[1] & 7) << 32;
            block[7] = 0;
            block[7] = page_hash(&block);
        }
        if Header::decode(&block).is_ok() {
            prop_assert!(runs(&block).all(|run| run.count > 0 && run.end() > run.start()));
        }
        let _ = check(|number, into| { *into = block; number < 3 });
    }

    #[test]
    fn no_items_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(items(&bytes).count() <= bytes.len() / ITEM_HEADER + 1);
    }
}
