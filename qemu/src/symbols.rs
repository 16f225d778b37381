//! The table of function names inside an image, for backtraces at EL2.
//!
//! An image that wants one reserves zero-filled space in a section `.symbols`. The tool fills it after linking, all
//! fields little-endian:
//!
//! ```text
//! u32 magic 0x53594d42 | u32 count | u32 strings_len | u32 pad
//! count times, sorted by the first field: { u32 offset from the image's base | u32 offset into the strings }
//! strings_len bytes of NUL-terminated, demangled names
//! ```

/// The table's first word.
pub const MAGIC: u32 = 0x5359_4d42;
const HEADER: usize = 16;
const ENTRY: usize = 8;

/// A function: where it begins, as an offset from the image's base, and its demangled name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Bytes from the image's base.
    pub offset: u32,
    /// Without the compiler's hash.
    pub name: String,
}

/// Encodes a table of at most `room` bytes.
///
/// If the names don't fit, all are cut to the longest common length that does: a name's beginning still says which
/// module it is in. If not even the entries fit with one letter each, there is no table (`None`) .
pub fn encode(mut symbols: Vec<Symbol>, room: usize) -> Option<Vec<u8>> {
    symbols.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    // Two names for one place (merged functions, aliases): the first is as good as the second.
    symbols.dedup_by_key(|symbol| symbol.offset);
    let fixed = HEADER + ENTRY * symbols.len();
    let strings = |limit: usize| symbols.iter().map(|s| cut(&s.name, limit).len() + 1).sum::<usize>();
    let longest = symbols.iter().map(|s| s.name.len()).max().unwrap_or(0).max(1);
    let limit = (1..=longest).rev().find(|&limit| fixed + strings(limit) <= room)?;

    let word = |value: usize| u32::try_from(value).expect("a table is smaller than 4 GiB").to_le_bytes();
    let mut table = Vec::with_capacity(room);
    for field in [MAGIC as usize, symbols.len(), strings(limit), 0] {
        table.extend_from_slice(&word(field));
    }
    let mut names = Vec::new();
    for symbol in &symbols {
        table.extend_from_slice(&symbol.offset.to_le_bytes());
        table.extend_from_slice(&word(names.len()));
        names.extend_from_slice(cut(&symbol.name, limit).as_bytes());
        names.push(0);
    }
    table.extend_from_slice(&names);
    Some(table)
}

/// The first `limit` bytes of a name, or a few less where a character would be split.
fn cut(name: &str, limit: usize) -> &str {
    let mut end = limit.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(offset: u32, name: &str) -> Symbol {
        Symbol { offset, name: name.into() }
    }

    /// Reads a table as the hypervisor does.
    fn decode(table: &[u8]) -> Vec<Symbol> {
        let word = |at: usize| u32::from_le_bytes(table[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), MAGIC);
        let (count, strings_len) = (word(4) as usize, word(8) as usize);
        let strings = &table[HEADER + ENTRY * count..];
        assert_eq!(strings.len(), strings_len);
        (0..count)
            .map(|n| {
                let name = &strings[word(HEADER + ENTRY * n + 4) as usize..];
                let end = name.iter().position(|&byte| byte == 0).unwrap();
                symbol(word(HEADER + ENTRY * n), std::str::from_utf8(&name[..end]).unwrap())
            })
            .collect()
    }

    #[test]
    fn sorted_and_without_aliases() {
        let table = encode(vec![symbol(0x80, "b"), symbol(0, "start"), symbol(0x80, "a")], 4096).unwrap();
        assert_eq!(decode(&table), [symbol(0, "start"), symbol(0x80, "a")]);
    }

    #[test]
    fn long_names_lose_their_tails_first() {
        let symbols = vec![symbol(0, "short"), symbol(4, "a_very_long_name_indeed")];
        let whole = encode(symbols.clone(), 4096).unwrap().len();
        let table = encode(symbols.clone(), whole - 6).unwrap();
        assert!(table.len() <= whole - 6);
        assert_eq!(decode(&table), [symbol(0, "short"), symbol(4, "a_very_long_name_")]);
        assert_eq!(encode(symbols, HEADER + 2 * ENTRY + 3), None);
    }

    #[test]
    fn an_empty_table_is_a_table() {
        assert_eq!(decode(&encode(vec![], 16).unwrap()), []);
        assert_eq!(encode(vec![], 15), None);
    }

    #[test]
    fn characters_stay_whole() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
    }
}
