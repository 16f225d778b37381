//! The names of the image's functions, which the host tool puts into the image, for backtraces.
//!
//! Layout, little-endian: magic, number of symbols, bytes of strings, padding (`u32` each); for each symbol its offset
//! from the image's start and the offset of its name in the strings (`u32` each), sorted by the former; the strings, each
//! ended by a NUL.

/// The first word of a table that was filled in.
pub const MAGIC: u32 = 0x5359_4d42;

/// A view of the table; empty where nothing was filled in.
#[derive(Clone, Copy, Debug)]
pub struct SymbolTable<'a> {
    entries: &'a [u8],
    strings: &'a [u8],
}

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 8;

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

impl<'a> SymbolTable<'a> {
    /// The table in `bytes`, which may go on behind it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::read(bytes).unwrap_or(Self { entries: &[], strings: &[] })
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        if word(bytes, 0)? != MAGIC {
            return None;
        }
        let entry_bytes = (word(bytes, 4)? as usize).checked_mul(ENTRY_BYTES)?;
        let (entries, rest) = bytes.get(HEADER_BYTES..)?.split_at_checked(entry_bytes)?;
        Some(Self { entries, strings: rest.get(..word(bytes, 8)? as usize)? })
    }

    /// The symbol that `offset`, from the image's start, lies in or behind, and how far behind its start.
    pub fn find(&self, offset: u32) -> Option<(&'a str, u32)> {
        let (entries, _) = self.entries.as_chunks::<ENTRY_BYTES>();
        let behind = entries.partition_point(|entry| word(entry, 0).is_some_and(|start| start <= offset));
        let entry = entries.get(behind.checked_sub(1)?)?;
        let name = self.strings.get(word(entry, 4)? as usize..)?;
        let end = name.iter().position(|&byte| byte == 0)?;
        Some((core::str::from_utf8(&name[..end]).ok()?, offset - word(entry, 0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn table(symbols: &[(u32, u32)], strings: &[u8]) -> Vec<u8> {
        let header = [MAGIC, symbols.len() as u32, strings.len() as u32, 0];
        let entries = symbols.iter().flat_map(|&(offset, name)| [offset, name]);
        let words = header.into_iter().chain(entries).flat_map(u32::to_le_bytes);
        words.chain(strings.iter().copied()).chain([0xff; 7]).collect()
    }

    #[test]
    fn an_address_belongs_to_the_symbol_at_or_before_it() {
        let bytes = table(&[(0x40, 0), (0x100, 6)], b"first\0second\0");
        let table = SymbolTable::new(&bytes);
        assert_eq!(table.find(0x3f), None);
        assert_eq!(table.find(0x40), Some(("first", 0)));
        assert_eq!(table.find(0xff), Some(("first", 0xbf)));
        assert_eq!(table.find(0x1000), Some(("second", 0xf00)));
    }

    #[test]
    fn damage_means_no_name_never_a_panic() {
        let good = table(&[(0, 0), (8, 2)], b"a\0b\0");
        for length in 0..good.len() {
            let _ = SymbolTable::new(&good[..length]).find(9);
        }
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0xff;
            let _ = SymbolTable::new(&bad).find(9);
        }
        assert_eq!(SymbolTable::new(&[0; 64]).find(9), None, "nothing was filled in");
    }
}
