//! From a linked ELF to the flat arm64 Image that QEMU and boot loaders take.

use crate::pe;
use crate::symbols::{self, Symbol};
use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind, elf};

/// Section that an image reserves for its symbol table.
const SYMBOLS_SECTION: &str = ".symbols";

/// Lays out the `LOAD` segments by physical address and fills `.symbols` if the ELF has one.
///
/// The first byte is the lowest segment's; memory that is zero at the end (BSS) is not in the file, the header's
/// `image_size` counts it.
///
/// # Errors
/// If the bytes are no 64-bit ELF, if segments overlap, if the result does not begin with an arm64 Image header, if that
/// says it is a PE file as well and it is not, or if the symbols don't fit.
pub fn flatten(bytes: &[u8]) -> Result<Vec<u8>> {
    let file = ElfFile64::<Endianness>::parse(bytes).context("not a 64-bit ELF")?;
    let endian = file.endian();
    let mut segments: Vec<(u64, &[u8])> = Vec::new();
    for header in file.elf_program_headers().iter().filter(|header| header.p_type(endian) == elf::PT_LOAD) {
        let Ok(data) = header.data(endian, bytes) else { bail!("a segment's contents lie outside the file") };
        if !data.is_empty() {
            segments.push((header.p_paddr(endian), data));
        }
    }
    segments.sort_by_key(|&(address, _)| address);
    let Some(&(base, _)) = segments.first() else { bail!("there is nothing to load in it") };

    let mut image = Vec::new();
    for (address, data) in segments {
        let offset = usize::try_from(address - base)?;
        ensure!(offset >= image.len(), "two segments overlap at {address:#x}");
        ensure!(offset < 1 << 30, "a segment at {address:#x} is more than 1 GiB away from the first");
        image.resize(offset, 0);
        image.extend_from_slice(data);
    }
    ensure!(image.get(56..60) == Some(b"ARM\x64"), "the first bytes are no arm64 Image header");
    if let Some(section) = file.section_by_name(SYMBOLS_SECTION) {
        // Sections have virtual addresses; the images are linked with physical = virtual.
        let start = usize::try_from(section.address().checked_sub(base).context("`.symbols` lies before the image")?)?;
        let room = usize::try_from(section.size())?;
        let place = image.get_mut(start..start + room).context("`.symbols` is not inside a loaded segment")?;
        let functions = functions(&file, base);
        let count = functions.len();
        let table = symbols::encode(functions, room)
            .with_context(|| format!("`.symbols` has {room} bytes, too few for {count} functions"))?;
        place[..table.len()].copy_from_slice(&table);
    }
    if image.starts_with(b"MZ") {
        pe::check(&image).context("its PE headers are wrong")?;
    }
    Ok(image)
}

/// Every function in the ELF's symbol table.
fn functions(file: &ElfFile64<'_, Endianness>, base: u64) -> Vec<Symbol> {
    file.symbols()
        .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
        .filter_map(|symbol| {
            let offset = u32::try_from(symbol.address().checked_sub(base)?).ok()?;
            let name = symbol.name().ok().filter(|name| !name.is_empty() && !name.starts_with('$'))?;
            // `{:#}` leaves the hash out.
            Some(Symbol { offset, name: format!("{:#}", rustc_demangle::demangle(name)) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[u8] = b"\0.symbols\0_ZN10hypervisor4boot5start17h0123456789abcdefE\0";
    const SYMBOLS_NAME: u64 = 1;
    const FUNCTION_NAME: u64 = 10;

    /// Appends little-endian fields, each a value and its size in bytes.
    fn put(out: &mut Vec<u8>, fields: &[(u64, usize)]) {
        for &(value, size) in fields {
            out.extend_from_slice(&value.to_le_bytes()[..size]);
        }
    }

    /// An ELF with a segment of `data` at 0x1000 whose last 64 bytes are `.symbols`, perhaps once more at `second`, and
    /// with one function at 0x1040.
    fn elf_with(data: &[u8], second: Option<u64>) -> Vec<u8> {
        let addresses: Vec<u64> = second.into_iter().chain([0x1000]).collect();
        let size = data.len() as u64;
        let data_at = 64 + 56 * addresses.len() as u64;
        let (names_at, table_at) = (data_at + size, data_at + size + NAMES.len() as u64);
        let sections_at = table_at + 48;
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        // e_type EXEC, e_machine AARCH64, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, and the counts.
        put(&mut out, &[(2, 2), (183, 2), (1, 4), (0x1000, 8), (64, 8), (sections_at, 8), (0, 4), (64, 2)]);
        put(&mut out, &[(56, 2), (addresses.len() as u64, 2), (64, 2), (4, 2), (2, 2)]);
        for address in addresses {
            put(&mut out, &[(1, 4), (5, 4), (data_at, 8), (address, 8), (address, 8)]);
            put(&mut out, &[(size, 8), (size + 4096, 8), (8, 8)]);
        }
        out.extend_from_slice(data);
        out.extend_from_slice(NAMES);
        out.resize(out.len() + 24, 0);
        put(&mut out, &[(FUNCTION_NAME, 4), (2, 1), (0, 1), (1, 2), (0x1040, 8), (4, 8)]);
        // Sections: none, .symbols, the names, the symbol table.
        out.resize(out.len() + 64, 0);
        let mut section = |name, kind, address, at, size, link, entry| {
            let fields =
                [(name, 4), (kind, 4), (0, 8), (address, 8), (at, 8), (size, 8), (link, 4), (1, 4), (1, 8), (entry, 8)];
            put(&mut out, &fields);
        };
        section(SYMBOLS_NAME, 1, 0x1000 + size - 64, data_at + size - 64, 64, 0, 0);
        section(0, 3, 0, names_at, NAMES.len() as u64, 0, 0);
        section(0, 2, 0, table_at, 48, 2, 24);
        out
    }

    fn image_data() -> Vec<u8> {
        let mut data = vec![0; 256];
        data[0] = 1;
        data[56..60].copy_from_slice(b"ARM\x64");
        data
    }

    #[test]
    fn segments_are_laid_out_and_symbols_filled_in() {
        let image = flatten(&elf_with(&image_data(), Some(0x1200))).unwrap();
        assert_eq!(image.len(), 0x300);
        assert_eq!(image[0x200..0x240], image[..0x40]);
        let table = &image[256 - 64..256];
        assert_eq!(table[..4], symbols::MAGIC.to_le_bytes());
        assert_eq!(table[4..8], 1_u32.to_le_bytes());
        assert_eq!(table[16..20], 0x40_u32.to_le_bytes());
        assert!(table[24..].starts_with(b"hypervisor::boot::start\0"));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let reason = |bytes: &[u8]| flatten(bytes).unwrap_err().to_string();
        assert!(reason(b"not an ELF").contains("ELF"));
        assert!(reason(&elf_with(&[0; 256], None)).contains("Image header"));
        assert!(reason(&elf_with(&image_data(), Some(0x1080))).contains("overlap"));
    }
}
