//! How much code a library adds to an image, and how much stack a call of it takes: read from the linked image.
//!
//! The code is that of the library's functions that its user calls, and of all that they call in turn, by the branches in
//! their instructions; what was inlined into them counts, whosever it was, and so does what others call as well. What of
//! the library was inlined into its user does not count, so its entry points should not be inlined. The stack is that of
//! the deepest chain of calls from an entry point on, by the instructions that move SP; functions that call themselves,
//! also through one another, are counted as often as a table has levels, since the engine's recursion follows the levels of
//! its tables. Calls through pointers can't be followed: they are listed.

use anyhow::{Context, Result, ensure};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};

/// Levels of a translation table: 0 to 3.
const LEVELS: u64 = 4;

/// A function of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    name: String,
    size: u64,
    /// Bytes by which it moves SP down.
    frame: u64,
    calls: BTreeSet<u64>,
    has_indirect_calls: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeSize {
    /// Bytes of all functions.
    pub text: u64,
    /// Each function, the largest first: its name, bytes of code, bytes of stack of its own.
    pub functions: Vec<(String, u64, u64)>,
    /// For each entry point: its name, and bytes of stack that a call of it takes.
    pub stack: Vec<(String, u64)>,
    /// Functions that call through pointers.
    pub indirect: Vec<String>,
}

/// Measures the functions that `is_library` accepts and that are called by those that `is_user` accepts, by their demangled
/// names, with all that they call.
///
/// # Errors
/// If `elf` is no ELF with a symbol table, or there is no such function.
pub fn measure(elf: &[u8], is_user: impl Fn(&str) -> bool, is_library: impl Fn(&str) -> bool) -> Result<CodeSize> {
    let functions = functions(elf)?;
    let called: BTreeSet<u64> =
        functions.values().filter(|function| is_user(&function.name)).flat_map(|user| user.calls.clone()).collect();
    let is_entry = |address: &u64| functions.get(address).is_some_and(|function| is_library(&function.name));
    let roots: Vec<u64> = called.into_iter().filter(is_entry).collect();
    ensure!(!roots.is_empty(), "the image has none of the functions to measure");
    let mut reached = BTreeSet::new();
    let mut todo = roots.clone();
    while let Some(address) = todo.pop() {
        if let Some(function) = functions.get(&address)
            && reached.insert(address)
        {
            todo.extend(&function.calls);
        }
    }
    let mut all: Vec<_> = reached.iter().filter_map(|address| functions.get(address)).collect();
    all.sort_by_key(|function| (std::cmp::Reverse(function.size), function.name.clone()));
    let stack = roots
        .iter()
        .filter_map(|root| Some((functions.get(root)?.name.clone(), depth(&functions, *root, &mut BTreeSet::new()))))
        .collect();
    Ok(CodeSize {
        text: all.iter().map(|function| function.size).sum(),
        functions: all.iter().map(|function| (function.name.clone(), function.size, function.frame)).collect(),
        stack,
        indirect: all.iter().filter(|f| f.has_indirect_calls).map(|f| f.name.clone()).collect(),
    })
}

/// Bytes of the functions that `is_counted` accepts, by their demangled names, without what they call.
///
/// # Errors
/// If `elf` is no ELF with a symbol table, or there is no such function.
pub fn text(elf: &[u8], is_counted: impl Fn(&str) -> bool) -> Result<u64> {
    let text = functions(elf)?.values().filter(|f| is_counted(&f.name)).map(|f| f.size).sum();
    ensure!(text > 0, "the image has none of the functions to count");
    Ok(text)
}

/// Bytes of stack that a call of the function at `address` takes. `above` are the functions that are being called.
fn depth(functions: &BTreeMap<u64, Function>, address: u64, above: &mut BTreeSet<u64>) -> u64 {
    if !functions.contains_key(&address) {
        return 0;
    }
    let again = cycle(functions, address);
    let (members, times) = if again.is_empty() { (BTreeSet::from([address]), 1) } else { (again, LEVELS) };
    if members.iter().any(|member| above.contains(member)) {
        // Counted where the cycle was entered.
        return 0;
    }
    let frames: u64 = members.iter().filter_map(|member| functions.get(member)).map(|f| f.frame).sum();
    above.extend(&members);
    let below = members
        .iter()
        .filter_map(|member| functions.get(member))
        .flat_map(|member| member.calls.difference(&members).copied().collect::<Vec<_>>())
        .map(|callee| depth(functions, callee, above))
        .max()
        .unwrap_or(0);
    above.retain(|member| !members.contains(member));
    frames * times + below
}

/// The functions that call each other in a circle with the one at `address`, itself included; none if it is in no circle.
fn cycle(functions: &BTreeMap<u64, Function>, address: u64) -> BTreeSet<u64> {
    let reach = |from: u64| {
        let mut reached = BTreeSet::new();
        let mut todo: Vec<u64> = functions.get(&from).map_or_else(Vec::new, |f| f.calls.iter().copied().collect());
        while let Some(next) = todo.pop() {
            if let Some(function) = functions.get(&next)
                && reached.insert(next)
            {
                todo.extend(&function.calls);
            }
        }
        reached
    };
    reach(address).into_iter().filter(|&member| reach(member).contains(&address)).collect()
}

/// All functions of an image, by address.
fn functions(elf: &[u8]) -> Result<BTreeMap<u64, Function>> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(elf).context("not a 64-bit ELF")?;
    ensure!(
        file.elf_header().e_machine(file.endian()) == object::elf::EM_AARCH64,
        "the image is for another architecture"
    );
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let (address, size) = (symbol.address(), symbol.size());
        let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
        let Some(code) = section.and_then(|section| section.data_range(address, size).ok().flatten()) else { continue };
        let name = rustc_demangle::demangle(symbol.name().unwrap_or_default());
        functions.insert(address, function(format!("{name:#}"), address, code));
    }
    Ok(functions)
}

/// Reads a function's instructions (A64: C4.1).
fn function(name: String, address: u64, code: &[u8]) -> Function {
    let size = code.len() as u64;
    let mut function = Function { name, size, frame: 0, calls: BTreeSet::new(), has_indirect_calls: false };
    for (n, word) in code.chunks_exact(4).enumerate() {
        let instruction = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let at = address + 4 * n as u64;
        match instruction {
            // B and BL, 26-bit offset in words. A branch out of the function is a call that does not return here.
            i if i & 0x7c00_0000 == 0x1400_0000 => {
                let offset = i64::from(((i << 6) as i32) >> 6) * 4;
                let target = at.wrapping_add_signed(offset);
                if i & 0x8000_0000 != 0 || !(address..address + size).contains(&target) {
                    function.calls.insert(target);
                }
            }
            // BLR.
            i if i & 0xffff_fc1f == 0xd63f_0000 => function.has_indirect_calls = true,
            // SUB SP, SP, #imm12{, LSL #12}.
            i if i & 0xff80_03ff == 0xd100_03ff => {
                let immediate = u64::from(i >> 10 & 0xfff);
                function.frame += if i & 1 << 22 != 0 { immediate << 12 } else { immediate };
            }
            // STP Xt, Xt2, [SP, #-imm7 * 8]!.
            i if i & 0xffc0_03e0 == 0xa980_03e0 => {
                let immediate = i64::from(((i << 10) as i32) >> 25) * 8;
                function.frame += immediate.min(0).unsigned_abs();
            }
            // STR Xt, [SP, #-imm9]!.
            i if i & 0xffe0_0fe0 == 0xf800_0fe0 => {
                let immediate = i64::from(((i << 11) as i32) >> 23);
                function.frame += immediate.min(0).unsigned_abs();
            }
            _ => {}
        }
    }
    function
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u64, words: &[u32]) -> Function {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        function("f".into(), address, &code)
    }

    #[test]
    fn instructions_are_read() {
        // As GNU as encodes them.
        let f = read(
            0x1000,
            &[
                0xa9bf_7bfd, // stp x29, x30, [sp, #-16]!
                0xd101_03ff, // sub sp, sp, #0x40
                0xd140_07ff, // sub sp, sp, #0x1, lsl #12
                0xf81e_0ff3, // str x19, [sp, #-32]!
                0x97ff_fffc, // bl  0x1000 - ... : four instructions back, to 0x1000
                0x9400_0010, // bl  +0x40
                0x17ff_ffff, // b   -4, inside
                0x1400_0100, // b   +0x400, a tail call
                0xd63f_0100, // blr x8
                0x9101_03ff, // add sp, sp, #0x40
            ],
        );
        assert_eq!(f.frame, 16 + 0x40 + 0x1000 + 32);
        assert_eq!(f.calls, BTreeSet::from([0x1000, 0x1014 + 0x40, 0x101c + 0x400]));
        assert!(f.has_indirect_calls);
        assert_eq!(f.size, 40);
    }

    #[test]
    fn the_deepest_chain_counts_and_recursion_by_the_level() {
        let function = |frame, calls: &[u64]| Function {
            name: String::new(),
            size: 4,
            frame,
            calls: calls.iter().copied().collect(),
            has_indirect_calls: false,
        };
        let functions = BTreeMap::from([
            (1, function(10, &[2, 3, 99])),
            (2, function(100, &[])),
            (3, function(1, &[3, 4])),
            (4, function(20, &[5])),
            (5, function(2, &[4, 2])),
        ]);
        assert_eq!(depth(&functions, 2, &mut BTreeSet::new()), 100);
        // 4 and 5 call each other: 4 times 22, then 2.
        assert_eq!(depth(&functions, 4, &mut BTreeSet::new()), 88 + 100);
        assert_eq!(depth(&functions, 1, &mut BTreeSet::new()), 10 + 4 + 188);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(measure(b"not an ELF", |_| true, |_| true).is_err());
    }
}
