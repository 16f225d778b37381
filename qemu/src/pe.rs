//! Whether an image is what firmware takes for an EFI application: a PE32+ file that can be loaded anywhere, none of whose
//! memory is both written and executed (Microsoft PE Format; UEFI Specification 2.10, 2.1.1).

use anyhow::{Context, Result, ensure};
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::PeFile64;

/// Firmware's pages.
const PAGE: u64 = 4096;

/// Checks a file from its first byte to its last.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(file: &[u8]) -> Result<()> {
    let parsed = PeFile64::parse(file).context("not a PE32+ file")?;
    let headers = parsed.nt_headers();
    let (coff, optional) = (&headers.file_header, &headers.optional_header);
    ensure!(coff.machine.get(LE) == pe::IMAGE_FILE_MACHINE_ARM64, "it is for another architecture");
    ensure!(coff.characteristics.get(LE).contains(pe::IMAGE_FILE_EXECUTABLE_IMAGE), "it is not an executable image");
    ensure!(optional.subsystem.get(LE) == pe::IMAGE_SUBSYSTEM_EFI_APPLICATION, "it is not an EFI application");
    let alignment = u64::from(optional.section_alignment.get(LE));
    let file_alignment = u64::from(optional.file_alignment.get(LE));
    ensure!(alignment == PAGE && file_alignment == 512, "its alignments are {alignment} and {file_alignment}");
    let whole_image = u64::from(optional.size_of_image.get(LE));

    let headers_size = u64::from(optional.size_of_headers.get(LE));
    // Where the section before ended, in the file and in memory.
    let (mut in_file, mut in_memory) = (headers_size, headers_size);
    let mut entered = None;
    for section in parsed.section_table().iter() {
        let name = String::from_utf8_lossy(&section.name).trim_end_matches('\0').to_owned();
        let field = |field: &object::U32<LE>| u64::from(field.get(LE));
        let (address, size) = (field(&section.virtual_address), field(&section.virtual_size));
        let (at, bytes) = (field(&section.pointer_to_raw_data), field(&section.size_of_raw_data));
        ensure!(
            address == in_memory && address.is_multiple_of(PAGE),
            "{name} is at {address:#x}, not behind what comes before it"
        );
        ensure!(at == in_file && at.is_multiple_of(512), "{name} is at {at:#x} of the file, not behind the rest");
        ensure!(bytes.is_multiple_of(512), "{name} has {bytes} bytes in the file");
        (in_file, in_memory) = (at + bytes, (address + size).next_multiple_of(PAGE));
        let rights = section.characteristics.get(LE);
        let executable = rights.contains(pe::IMAGE_SCN_MEM_EXECUTE);
        ensure!(!(executable && rights.contains(pe::IMAGE_SCN_MEM_WRITE)), "{name} is both written and executed");
        if (address..address + size).contains(&u64::from(optional.address_of_entry_point.get(LE))) {
            entered = Some(executable);
        }
    }
    ensure!(entered == Some(true), "its entry lies in no executable section");
    ensure!(in_file == file.len() as u64, "its sections have {in_file} bytes, the file {}", file.len());
    ensure!(in_memory == whole_image, "its sections take {in_memory:#x} bytes, the image {whole_image:#x}");
    let mut blocks = parsed
        .data_directories()
        .relocation_blocks(file, &parsed.section_table())
        .context("its relocations are in no section")?
        .context("it has no relocations")?;
    while let Some(block) = blocks.next().context("its relocations are cut short")? {
        let left = block.into_iter().filter(|relocation| relocation.typ != pe::IMAGE_REL_BASED_ABSOLUTE).count();
        ensure!(left == 0, "it leaves {left} addresses to firmware, which the image relocates by itself");
    }
    Ok(())
}
