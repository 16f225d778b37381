//! Files of saved machines that are whole by their checksums and say what no save has written: each is refused with a sentence,
//! the guest does not start, its disk stays as it was, and the file that was not touched still goes on.

use hypervisor_abi::saved::{BLOCK_BYTES, Block, Checksum, FIRST, Header, Kind, MAX_BLOCKS, items, push_item};
use std::path::Path;
use system_tests::{Scratch, hv, scratch, stderr, stdout, turn_alone};

/// What the hypervisor calls the parts of a guest's state.
const CLOCK: u16 = 1;
const CPU: u16 = 2;
const GIC: u16 = 3;
const DEVICE: u16 = 0x100;

fn block(bytes: &[u8]) -> Block {
    let mut words = [0; BLOCK_BYTES as usize / 8];
    words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
    words
}

/// The same file with another payload in records that are not of pages, and checksums that are right.
fn rewritten(file: &[u8], mut change: impl FnMut(Kind, &mut Vec<u8>)) -> Vec<u8> {
    let at = |number: u64| &file[(number * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize];
    let mut new = file[..(FIRST * BLOCK_BYTES) as usize].to_vec();
    let mut next = FIRST;
    while next * BLOCK_BYTES < file.len() as u64 {
        let header = Header::decode(&block(at(next))).unwrap();
        let behind = next + 1 + header.blocks();
        if header.kind == Kind::Pages {
            new.extend_from_slice(&file[(next * BLOCK_BYTES) as usize..(behind * BLOCK_BYTES) as usize]);
        } else {
            let mut payload = file[((next + 1) * BLOCK_BYTES) as usize..][..header.bytes as usize].to_vec();
            change(header.kind, &mut payload);
            let bytes = payload.len() as u64;
            payload.resize(bytes.next_multiple_of(BLOCK_BYTES) as usize, 0);
            let mut checksum = Checksum::new();
            payload.chunks(BLOCK_BYTES as usize).for_each(|bytes| checksum.add(&block(bytes)));
            let words = Header { bytes, checksum: checksum.value(), ..header }.encode(&[]);
            new.extend(words.into_iter().flat_map(u64::to_le_bytes).chain(payload));
        }
        next = behind;
    }
    new
}

/// The same file with items of the state that `change` gives for each.
fn with_items(file: &[u8], change: impl Fn(u16, &[u8]) -> Vec<Vec<u8>>) -> Vec<u8> {
    rewritten(file, |kind, payload| {
        if kind == Kind::State {
            let (mut new, mut used) = (vec![0; (MAX_BLOCKS * BLOCK_BYTES) as usize], 0);
            for (tag, bytes) in items(payload).map(Option::unwrap) {
                assert!(change(tag, bytes).iter().all(|bytes| push_item(&mut new, &mut used, tag, bytes)));
            }
            new.truncate(used);
            *payload = new;
        }
    })
}

fn refused(scratch: &Scratch, file: &[u8], why: &str) {
    let foreign = scratch.file("foreign", file);
    let _turn = turn_alone();
    let output = hv(&["resume", foreign.to_str().unwrap(), "--run", "true"]).output().unwrap();
    let told = stderr(&output);
    assert!(!output.status.success() && told.contains(why), "{why}: {}{told}", stdout(&output));
    assert!(!told.contains("panicked") && !told.contains("crash"), "{told}");
}

#[test]
fn what_no_save_has_written_is_refused_and_the_disk_stays_as_it_was() {
    let scratch = scratch();
    let (saved, disk) = (scratch.path("saved"), scratch.file("disk", &vec![0; 4 << 20]));
    let write = "head -c 1000000 /dev/urandom >/tmp/f; cat /tmp/f >/dev/vda; sync; md5sum </tmp/f";
    let [path, image] = [&saved, &disk].map(|path| path.to_str().unwrap());
    let output = {
        let _turn = turn_alone();
        hv(&["linux", "--memory", "256M", "--disk", image, "--save", path, "--run", write]).output().unwrap()
    };
    let out = stdout(&output);
    let (sum, _) = out.split_once("saved: ").unwrap_or_else(|| panic!("{out}{}", stderr(&output)));
    let whole = std::fs::read(&saved).unwrap();
    let of = |image: &Path| (std::fs::metadata(image).unwrap().modified().unwrap(), std::fs::read(image).unwrap());
    let before = of(&disk);

    // The hash of all memory, which devices would go by.
    let other_hash = rewritten(&whole, |kind, payload| {
        if kind == Kind::End {
            payload[8] ^= 1;
        }
    });
    refused(&scratch, &other_hash, "hash");
    let keep = |bytes: &[u8]| vec![bytes.to_vec()];
    let without = |lost: u16| with_items(&whole, |tag, bytes| if tag == lost { vec![] } else { keep(bytes) });
    refused(&scratch, &without(CPU), "lacks a part");
    refused(&scratch, &without(CLOCK), "lacks a part");
    refused(&scratch, &without(DEVICE), "other devices");
    let changed = |of: u16, change: &dyn Fn(&mut Vec<u8>)| {
        with_items(&whole, |tag, bytes| {
            let mut bytes = bytes.to_vec();
            if tag == of {
                change(&mut bytes);
            }
            vec![bytes]
        })
    };
    refused(&scratch, &changed(CLOCK, &|bytes| bytes.resize(200 << 10, 0)), "no counters");
    refused(&scratch, &changed(GIC, &|bytes| bytes.truncate(8)), "other registers");
    // SPSR_EL2 behind the affinity, whether it is on, x0 to x30 and ELR_EL2: EL2 with its own stack.
    refused(&scratch, &changed(CPU, &|bytes| bytes[8 * 34] = 0xc9), "not those of this machine's CPUs");
    let twice = |of: u16| with_items(&whole, |tag, bytes| vec![bytes.to_vec(); if tag == of { 2 } else { 1 }]);
    refused(&scratch, &twice(DEVICE), "a device twice");
    refused(&scratch, &twice(CPU), "something twice");

    assert!(of(&disk) == before, "the disk was written");
    let _turn = turn_alone();
    let read = "echo 3 >/proc/sys/vm/drop_caches; head -c 1000000 /dev/vda | md5sum";
    let resumed = hv(&["resume", path, "--run", read]).output().unwrap();
    assert_eq!(stdout(&resumed), sum, "{}", stderr(&resumed));
}
