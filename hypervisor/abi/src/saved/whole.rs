//! A whole file, checked before anything is started.

use super::{Block, Checksum, Damage, End, Error, Fact, Field, Header, Kind, Order, Ram, facts, runs};
use crate::page_hash::WORDS;

/// What is in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Blocks.
    pub blocks: u64,
    /// Pages in payloads.
    pub pages: u64,
    /// Pages that are only named.
    pub zero_pages: u64,
    /// The hash of all memory.
    pub hash: u64,
}

/// Checks a file: that all its records are there, whole and in order, and that its pages are in the memory that it names. `read`
/// reads a block, and says whether there is one.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check(mut read: impl FnMut(u64, &mut Block) -> bool) -> Result<Contents, Error> {
    let (mut order, mut ram, mut contents) = (Order::whole(), Ram::new(), Contents::default());
    let mut block = [0; WORDS];
    loop {
        let at = order.block();
        let error = |damage| Error { block: at, damage };
        if !read(at, &mut block) {
            return Err(error(Damage::CutOff));
        }
        let header = Header::decode(&block).map_err(error)?;
        order.accept(&header)?;
        if header.kind == Kind::Pages {
            for run in runs(&block) {
                if !ram.covers(run) {
                    return Err(error(Damage::NotRam(run)));
                }
                *(if run.zero { &mut contents.zero_pages } else { &mut contents.pages }) += run.count;
            }
        }
        let mut checksum = Checksum::new();
        for number in 0..header.blocks() {
            if !read(at + 1 + number, &mut block) {
                return Err(error(Damage::CutOff));
            }
            checksum.add(&block);
            let bytes = header.bytes - number * super::BLOCK_BYTES;
            if header.kind == Kind::Machine && !add_ram(&mut ram, facts(&block, bytes)) {
                return Err(error(Damage::Impossible));
            }
        }
        if checksum.value() != header.checksum {
            return Err(error(Damage::Payload));
        }
        if header.kind == Kind::End {
            let end = End::of(&block);
            if header.bytes != End::BYTES || end.records != order.number() {
                return Err(error(Damage::Records(end.records)));
            }
            (contents.blocks, contents.hash) = (order.block(), end.hash);
            return if read(order.block(), &mut block) { Err(error(Damage::GoesOn)) } else { Ok(contents) };
        }
    }
}

/// Adds the ranges that facts name. A range's end comes right behind its start. Says whether there was room.
fn add_ram(ram: &mut Ram, facts: impl Iterator<Item = Fact>) -> bool {
    let mut start = 0;
    let mut room = true;
    for fact in facts {
        if fact.is(Field::RamStart) {
            start = fact.value;
        } else if fact.is(Field::RamEnd) {
            room &= ram.push(start, fact.value);
        }
    }
    room
}
