//! The symbols of a Linux kernel, read from the tables that it has in its own Image (CONFIG_KALLSYMS; written by
//! scripts/kallsyms.c), and where they are at run time.
//!
//! Names are sequences of tokens, offsets count from the lowest symbol. The address of that one in the file is 0 (a kernel
//! that places itself relocates it), so it is found at run time: VBAR_EL1 points to `vectors`, or to one of their copies for
//! branch history hardening.

use std::collections::BTreeMap;

/// Symbols between two markers in the table of names.
const MARKED: usize = 256;
/// More symbols than any kernel has.
const MOST: usize = 4 << 20;
/// Kernels lie at multiples of this (arm64's SEGMENT_ALIGN).
const ALIGN: u64 = 64 << 10;
/// Vectors that VBAR_EL1 can point to, and how many tables of [`VECTORS_SIZE`] bytes there are behind each symbol.
const VECTORS: [(&str, u64); 2] = [("vectors", 1), ("__bp_harden_el1_vectors", 4)];
const VECTORS_SIZE: u64 = 0x800;

/// A kernel's functions: their names by their offset from the kernel's lowest symbol, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Reads them from an Image; nothing if it has none, or in a form that is not known.
    pub fn read(image: &[u8]) -> Option<Self> {
        let tokens = Tokens::find(image)?;
        let names = (0..=tokens.start / 8 * 8).rev().step_by(8).find_map(|at| Names::at(image, at, &tokens))?;
        // Before Linux 6.5, offsets stand before the number of symbols, and the address of the lowest one in between.
        let behind = tokens.end.next_multiple_of(8);
        let before = names.number_at.checked_sub(8 + (4 * names.count).next_multiple_of(8));
        let offsets = [before, Some(behind)].into_iter().flatten().find_map(|at| offsets(image, at, names.count))?;
        let mut functions: BTreeMap<u64, String> = BTreeMap::new();
        for (&offset, name) in offsets.iter().zip(names.read(image, &tokens)?) {
            // The first letter is the kind, as `nm` says it.
            let Some(name) = name.strip_prefix(['T', 't', 'W', 'w']) else { continue };
            let known = functions.entry(offset.into()).or_insert_with(|| name.to_owned());
            // Of several names, the one without underscores is what people call it.
            if known.starts_with('_') && !name.starts_with('_') {
                name.clone_into(known);
            }
        }
        Some(Self(functions))
    }

    /// The address of the kernel's lowest symbol, when this is VBAR_EL1.
    pub fn base(&self, vbar: u64) -> Option<u64> {
        let of = |wanted: &str| self.0.iter().find(|(_, name)| *name == wanted).map(|(&offset, _)| offset);
        let starts = VECTORS.iter().filter_map(|&(name, count)| Some((of(name)?, count)));
        let bases = starts.flat_map(|(offset, count)| (0..count).map(move |n| offset + n * VECTORS_SIZE));
        bases.filter_map(|offset| vbar.checked_sub(offset)).find(|base| base.is_multiple_of(ALIGN))
    }

    /// The function that the instruction at `pc` is in, as `clear_page+0x18`; nothing if it is not the kernel's own code.
    pub fn name(&self, base: u64, pc: u64) -> Option<String> {
        let offset = pc.checked_sub(base)?;
        // The last name stands for the end of the code.
        let (&last, _) = self.0.last_key_value()?;
        let (&start, name) = self.0.range(..=offset).next_back().filter(|(start, _)| **start < last)?;
        Some(format!("{name}+{:#x}", offset - start))
    }
}

/// The 256 tokens, and where their table and its index are.
struct Tokens<'a> {
    start: usize,
    end: usize,
    tokens: Vec<&'a str>,
}

impl<'a> Tokens<'a> {
    /// Finds them by the digits, which stand for themselves in a row.
    fn find(image: &'a [u8]) -> Option<Self> {
        let digits: Vec<u8> = (b'0'..=b'9').flat_map(|digit| [digit, 0]).collect();
        let mut from = 0;
        while let Some(at) = image.get(from..).and_then(|rest| find(rest, &digits)).map(|at| from + at) {
            // 48 tokens stand before.
            let mut start = at;
            for _ in 0..b'0' {
                start = image[..start.checked_sub(1)?].iter().rposition(|&byte| byte == 0)? + 1;
            }
            // Nothing says where the first one begins: what is before need not end with a zero. The table is aligned.
            let first = image[start..].iter().position(|&byte| byte == 0).map_or(start, |length| start + length);
            let starts = (start.next_multiple_of(8)..=first).step_by(8);
            if let Some(found) = starts.into_iter().find_map(|start| Self::at(image, start)) {
                return Some(found);
            }
            from = at + 1;
        }
        None
    }

    fn at(image: &'a [u8], start: usize) -> Option<Self> {
        let mut tokens = Vec::with_capacity(256);
        let mut at = start;
        let mut index = Vec::with_capacity(512);
        for _ in 0..256 {
            index.extend_from_slice(&u16::try_from(at - start).ok()?.to_le_bytes());
            let length = image.get(at..)?.iter().position(|&byte| byte == 0)?;
            tokens.push(std::str::from_utf8(&image[at..at + length]).ok()?);
            at += length + 1;
        }
        let at = at.next_multiple_of(8);
        let end = at + index.len();
        (image.get(at..end)? == index).then_some(Self { start, end, tokens })
    }
}

/// The table of names.
struct Names {
    /// Where the number of symbols stands; the names begin 8 bytes behind.
    number_at: usize,
    count: usize,
}

impl Names {
    /// The table whose number of symbols stands at `at`, if the markers behind it say that this is one.
    fn at(image: &[u8], at: usize, tokens: &Tokens<'_>) -> Option<Self> {
        let count = usize::try_from(u64::from_le_bytes(*image.get(at..)?.first_chunk()?)).ok()?;
        if !(MARKED..MOST).contains(&count) || at + 8 + 2 * count > tokens.start {
            return None;
        }
        let mut markers = Vec::new();
        let mut end = at + 8;
        for number in 0..count {
            if number % MARKED == 0 {
                markers.extend_from_slice(&u32::try_from(end - at - 8).ok()?.to_le_bytes());
            }
            end = entry(image, end)?.1;
            if end > tokens.start {
                return None;
            }
        }
        let marked = |align: usize| {
            let at = end.next_multiple_of(align);
            image.get(at..at + markers.len()) == Some(&markers)
        };
        (marked(8) || marked(4)).then_some(Self { number_at: at, count })
    }

    fn read(&self, image: &[u8], tokens: &Tokens<'_>) -> Option<Vec<String>> {
        let mut at = self.number_at + 8;
        let mut names = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            let (start, end) = entry(image, at)?;
            names.push(image.get(start..end)?.iter().map(|&byte| tokens.tokens[usize::from(byte)]).collect());
            at = end;
        }
        Some(names)
    }
}

/// Where the tokens of the name at `at` begin and end: its length takes one byte, or two for more than 127.
fn entry(image: &[u8], at: usize) -> Option<(usize, usize)> {
    let byte = |at: usize| image.get(at).map(|&byte| usize::from(byte));
    let (length, start) = match byte(at)? {
        0 => return None,
        short @ 1..0x80 => (short, at + 1),
        low => (low & 0x7f | byte(at + 1)? << 7, at + 2),
    };
    Some((start, start + length))
}

/// So many offsets, which never go down.
fn offsets(image: &[u8], at: usize, count: usize) -> Option<Vec<u32>> {
    let bytes = image.get(at..at.checked_add(4 * count)?)?;
    let offsets: Vec<u32> =
        bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_le_bytes).collect();
    (offsets.is_sorted() && offsets.first() != offsets.last()).then_some(offsets)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The functions of a small kernel, and data behind them.
    fn symbols() -> Vec<(u32, String)> {
        let mut all =
            vec![(0, "T_stext".to_owned()), (0x800, "Tvectors".into()), (0x2800, "T__bp_harden_el1_vectors".into())];
        all.extend((0..600).map(|number| (0x1_0000 + number * 0x40, format!("tf{number}"))));
        all.push((0x1_0040, "T__pi_f1".into()));
        all.push((0x2_0000, "T_etext".into()));
        all.push((0x3_0000, "Dsome_data".into()));
        all.sort_by_key(|symbol| symbol.0);
        all
    }

    /// The tables, in the order of a kernel before 6.5 or of a later one, with something before them.
    fn image(symbols: &[(u32, String)], old: bool) -> Vec<u8> {
        let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(8), 0);
        let mut offsets: Vec<u8> = symbols.iter().flat_map(|symbol| symbol.0.to_le_bytes()).collect();
        align(&mut offsets);
        let mut names = (symbols.len() as u64).to_le_bytes().to_vec();
        let mut markers = Vec::new();
        for (number, (_, name)) in symbols.iter().enumerate() {
            if number % MARKED == 0 {
                markers.extend_from_slice(&(names.len() as u32 - 8).to_le_bytes());
            }
            names.push(name.len() as u8);
            names.extend_from_slice(name.as_bytes());
        }
        align(&mut names);
        align(&mut markers);
        let (mut table, mut index) = (Vec::new(), Vec::new());
        for token in 0..=255_u8 {
            index.extend_from_slice(&(table.len() as u16).to_le_bytes());
            // Those that no name uses stand for pairs.
            let text = if token.is_ascii_alphanumeric() || token == b'_' {
                char::from(token).into()
            } else {
                format!("q{token}")
            };
            table.extend_from_slice(text.as_bytes());
            table.push(0);
        }
        align(&mut table);
        let base = [0; 8];
        let parts: Vec<&[u8]> = match old {
            true => vec![&offsets, &base, &names, &markers, &[1; 24], &table, &index],
            false => vec![&names, &markers, &table, &index, &offsets, &base],
        };
        [vec![7; 64], parts.concat()].concat()
    }

    #[test]
    fn both_orders_are_read() {
        for old in [true, false] {
            let read = Symbols::read(&image(&symbols(), old)).unwrap();
            let base = 0xffff_8000_0801_0000;
            assert_eq!(read.name(base, base + 0x1_0058).as_deref(), Some("f1+0x18"), "old: {old}");
            assert_eq!(read.name(base, base + 0x1_0000).as_deref(), Some("f0+0x0"));
            // Behind the code, before it, and in a program.
            assert_eq!([base + 0x2_0000, base - 4, 0x40_0000].map(|pc| read.name(base, pc)), [None, None, None]);
        }
    }

    #[test]
    fn the_vectors_say_where_the_kernel_is() {
        let read = Symbols::read(&image(&symbols(), false)).unwrap();
        let base = 0xffff_a5c3_1801_0000;
        for vectors in [0x800, 0x2800, 0x3000, 0x4000] {
            assert_eq!(read.base(base + vectors), Some(base), "{vectors:#x}");
        }
        assert_eq!(read.base(base + 0x8800), None);
        assert_eq!(read.base(0), None);
    }

    #[test]
    fn damaged_tables_are_none() {
        let good = image(&symbols(), true);
        assert!(Symbols::read(&good).is_some());
        for length in (0..good.len()).step_by(97) {
            assert_eq!(Symbols::read(&good[..length]), None, "{length}");
        }
        // The number of symbols, and the length of the first name.
        let number_at = 64 + (4 * symbols().len()).next_multiple_of(8) + 8;
        for at in [number_at, number_at + 8] {
            let mut bad = good.clone();
            bad[at] = 0;
            assert_eq!(Symbols::read(&bad), None, "{at}");
        }
        assert_eq!(Symbols::read(&[0; 4096]), None);
    }
}
