//! What kind of file a guest kernel is, and how much memory it takes.

use anyhow::{Context, Result, bail, ensure};
use hypervisor::image::{self, Kernel};
use object::pe::{ImageDosHeader, ImageNtHeaders64};
use object::read::pe::ImageNtHeaders;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A header says where to go behind a boundary of so many bytes.
const ALIGN: u64 = 2 << 20;
/// The first bytes of a file: more than enough for all headers.
const HEAD: u64 = 16 << 10;

/// How a kernel wants to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Offset behind a 2 MiB boundary, in bytes.
    pub text_offset: u64,
    /// Memory it takes from there on, in bytes: the file's size, or the header's `image_size`, which counts BSS too.
    pub size: u64,
    /// Whether it has the header of an arm64 Image; a raw binary has none, and starts at its first byte.
    pub is_image: bool,
}

/// Reads a kernel's header. A file that is neither an Image nor a known mistake is a raw binary.
///
/// # Errors
/// If the file can't be read or is empty, is cut short, or is of a kind that can't be started; the sentence says what to do.
pub fn shape(path: &Path) -> Result<Shape> {
    let (shape, _) = read(path)?;
    Ok(shape)
}

/// The same for a kernel that a user has named: a raw binary only where that is wanted.
///
/// # Errors
/// As [`shape`]'s; a raw binary that is not wanted as one.
pub fn check(path: &Path, raw: bool) -> Result<Shape> {
    let (shape, head) = read(path)?;
    let is_text = std::str::from_utf8(&head).is_ok_and(|text| !text.contains('\0'));
    ensure!(
        shape.is_image || raw,
        "the kernel {} is not an arm64 Image{}; pass the Image (in a build tree: arch/arm64/boot/Image), or add --raw to \
         start the file at its first byte all the same",
        path.display(),
        if is_text { ": it is a text file" } else { ": it has no \"ARM\\x64\" at offset 56" }
    );
    ensure!(
        !(shape.is_image && raw),
        "the kernel {} is an arm64 Image, which starts by its header; leave --raw out",
        path.display()
    );
    Ok(shape)
}

fn read(path: &Path) -> Result<(Shape, Vec<u8>)> {
    let mut file = File::open(path)
        .with_context(|| format!("can't open the kernel {}; name a file that is there", path.display()))?;
    let data = file.metadata().with_context(|| format!("can't read {}", path.display()))?;
    if data.is_dir() {
        bail!("the kernel {} is a folder; pass an arm64 Image", path.display());
    }
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head).with_context(|| format!("can't read {}", path.display()))?;
    let shape = parse(&head, data.len()).with_context(|| format!("the kernel {} can't be used", path.display()))?;
    Ok((shape, head))
}

/// The shape of a file of `length` bytes that starts with `head`.
fn parse(head: &[u8], length: u64) -> Result<Shape> {
    let kernel = image::examine(head)?;
    let is_image = matches!(kernel, Kernel::Image { .. });
    if let Some(whole) = whole_length(head).filter(|&whole| is_image && length < whole) {
        bail!(
            "the file is cut short: by its own header it has {whole} bytes, and {length} are there; copy or download it \
             again"
        );
    }
    Ok(Shape { text_offset: kernel.text_offset() % ALIGN, size: kernel.image_size().max(length), is_image })
}

/// The bytes that an Image has which is an EFI application too, as all of Linux's are by default: to the end of its last
/// section.
fn whole_length(head: &[u8]) -> Option<u64> {
    let mut offset = ImageDosHeader::parse(head).ok()?.nt_headers_offset().into();
    let (headers, _) = ImageNtHeaders64::parse(head, &mut offset).ok()?;
    let sections = headers.sections(head, offset).ok()?;
    let ends = sections.iter().map(|section| {
        u64::from(section.pointer_to_raw_data.get(object::LittleEndian))
            + u64::from(section.size_of_raw_data.get(object::LittleEndian))
    });
    ends.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text_offset: u64, image_size: u64) -> Vec<u8> {
        let mut header = vec![0; 64];
        header[8..16].copy_from_slice(&text_offset.to_le_bytes());
        header[16..24].copy_from_slice(&image_size.to_le_bytes());
        header[56..60].copy_from_slice(b"ARM\x64");
        header
    }

    #[test]
    fn an_image_takes_its_bss_too() {
        let shape = parse(&image(0, 30 << 20), 20 << 20).unwrap();
        assert_eq!(shape, Shape { text_offset: 0, size: 30 << 20, is_image: true });
        let old = parse(&image(0, 0), 20 << 20).unwrap();
        assert_eq!(old, Shape { text_offset: 0x8_0000, size: 20 << 20, is_image: true });
    }

    #[test]
    fn anything_else_is_raw() {
        assert_eq!(parse(&[0; 64], 4096).unwrap(), Shape { text_offset: 0, size: 4096, is_image: false });
        assert_eq!(parse(&[1], 1).unwrap(), Shape { text_offset: 0, size: 1, is_image: false });
    }

    #[test]
    fn archives_are_refused_with_advice() {
        assert!(parse(&[0x1f, 0x8b, 8, 0], 4096).unwrap_err().to_string().contains("gzip -dc"));
        let mut zboot = vec![0; 64];
        zboot[4..8].copy_from_slice(b"zimg");
        assert!(parse(&zboot, 4096).unwrap_err().to_string().contains("zboot"));
        assert!(parse(&[], 0).is_err());
    }
}
