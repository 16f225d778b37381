//! A hash table of 256 MiB, read and written at random, as memcached does: chains of items that lie one behind the other in
//! the order of their insertion. One in ten accesses stores a value, the others load one.

use crate::marker;
use crate::system::{HugePages, Memory};

/// Buckets, each the number of its first item, from 1; and as many items.
const COUNT: u64 = 1 << 21;
/// Words of an item: its key, the next item of its chain, and the value.
const ITEM: usize = 15;
/// Words of the value that are loaded or stored.
const VALUE: usize = 8;
const BYTES: u64 = COUNT * 8 * (1 + ITEM as u64);

const WARM: u64 = 100_000;
const COUNTED: u64 = 400_000;

/// Marsaglia's xorshift64*.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

/// The table; an item's number is one more than its index.
struct Table<'a> {
    buckets: &'a mut [u64],
    items: &'a mut [u64],
}

fn hash(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % COUNT as usize
}

impl Table<'_> {
    fn insert(&mut self, number: u64) {
        let bucket = &mut self.buckets[hash(number)];
        let item = &mut self.items[(number as usize - 1) * ITEM..][..ITEM];
        (item[0], item[1]) = (number, *bucket);
        *bucket = number;
    }

    fn value(&mut self, key: u64) -> Option<&mut [u64]> {
        let mut number = self.buckets[hash(key)];
        while number != 0 {
            let at = (number as usize - 1) * ITEM;
            let item = &self.items[at..][..ITEM];
            if item[0] == key {
                return self.items.get_mut(at + 2..at + 2 + VALUE);
            }
            number = item[1];
        }
        None
    }

    fn work(&mut self, chance: &mut Chance, accesses: u64, buffer: &mut [u64; VALUE]) {
        for access in 0..accesses {
            let key = 1 + chance.next() % COUNT;
            let Some(value) = self.value(key) else { continue };
            if access % 10 == 0 {
                value.copy_from_slice(buffer)
            } else {
                buffer.copy_from_slice(value)
            }
            // What was copied is not left out because nobody looks.
            core::hint::black_box(&mut *buffer);
        }
    }
}

/// Fills the table, and uses it.
pub fn run(window: u64, huge: HugePages) -> Result<(), i64> {
    let mut memory = Memory::new(BYTES, huge)?;
    // Linux gives a huge page at a first write; after a read there is a page of zeros, which writes replace in small pieces.
    memory.words().fill(0);
    let (buckets, items) = memory.words().split_at_mut(COUNT as usize);
    let mut table = Table { buckets, items };
    (1..=COUNT).for_each(|number| table.insert(number));
    let (mut chance, mut buffer) = (Chance(window), [0; VALUE]);
    marker::watch();
    table.work(&mut chance, WARM, &mut buffer);
    marker::open(window);
    table.work(&mut chance, COUNTED, &mut buffer);
    marker::close();
    Ok(())
}
