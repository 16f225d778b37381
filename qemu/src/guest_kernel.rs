//! What kind of file a guest kernel is, and how much memory it takes.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// `"ARM\x64"` at offset 56: the arm64 Image header (Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: &[u8; 4] = b"ARM\x64";
/// Where a raw binary is loaded behind a 2 MiB boundary, as by QEMU's own `-kernel`.
const RAW_TEXT_OFFSET: u64 = 0x8_0000;

/// How a kernel wants to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Offset behind a 2 MiB boundary, in bytes.
    pub text_offset: u64,
    /// Memory it takes from there on, in bytes: the file's size, or the header's `image_size`, which counts BSS too.
    pub size: u64,
}

/// Reads a kernel's header.
///
/// # Errors
/// If the file can't be read or is empty, or is an archive that has to be unpacked first; the sentence says how.
pub fn shape(path: &Path) -> Result<Shape> {
    let mut file = File::open(path).with_context(|| format!("can't open the kernel {}", path.display()))?;
    let length = file.metadata().with_context(|| format!("can't read {}", path.display()))?;
    if length.is_dir() {
        bail!("the kernel {} is a folder; pass an arm64 Image", path.display());
    }
    let mut header = Vec::new();
    file.by_ref().take(64).read_to_end(&mut header).with_context(|| format!("can't read {}", path.display()))?;
    parse(&header, length.len()).with_context(|| format!("the kernel {} can't be used", path.display()))
}

/// [`shape`] of a file of `length` bytes that starts with `header` (64 bytes, fewer if the file is shorter).
fn parse(header: &[u8], length: u64) -> Result<Shape> {
    if header.is_empty() {
        bail!("the file is empty");
    }
    if header.starts_with(&[0x1f, 0x8b]) {
        bail!("it is compressed with gzip; unpack it first: `zcat FILE > Image`");
    }
    if header.len() == 64 && header[4..8] == *b"zimg" {
        bail!("it is an EFI zboot image; pass the arm64 Image inside it (in a build tree: arch/arm64/boot/Image)");
    }
    if header.len() == 64 && header[56..60] == *IMAGE_MAGIC {
        let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        // Kernels before Linux 3.17 don't say how large they are, and then their text_offset is not to be trusted.
        let text_offset = if field(16) == 0 { RAW_TEXT_OFFSET } else { field(8) % (2 << 20) };
        return Ok(Shape { text_offset, size: field(16).max(length) });
    }
    // Not an Image (a raw binary, or an ELF): the hypervisor decides what to do with it, not this tool.
    Ok(Shape { text_offset: RAW_TEXT_OFFSET, size: length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text_offset: u64, image_size: u64) -> Vec<u8> {
        let mut header = vec![0; 64];
        header[8..16].copy_from_slice(&text_offset.to_le_bytes());
        header[16..24].copy_from_slice(&image_size.to_le_bytes());
        header[56..60].copy_from_slice(IMAGE_MAGIC);
        header
    }

    #[test]
    fn an_image_takes_its_bss_too() {
        let shape = parse(&image(0, 30 << 20), 20 << 20).unwrap();
        assert_eq!(shape, Shape { text_offset: 0, size: 30 << 20 });
        let old = parse(&image(0, 0), 20 << 20).unwrap();
        assert_eq!(old, Shape { text_offset: 0x8_0000, size: 20 << 20 });
    }

    #[test]
    fn anything_else_is_raw() {
        assert_eq!(parse(&[0; 64], 4096).unwrap(), Shape { text_offset: RAW_TEXT_OFFSET, size: 4096 });
        assert_eq!(parse(&[1], 1).unwrap(), Shape { text_offset: RAW_TEXT_OFFSET, size: 1 });
    }

    #[test]
    fn archives_are_refused_with_advice() {
        assert!(parse(&[0x1f, 0x8b, 8, 0], 4096).unwrap_err().to_string().contains("zcat"));
        let mut zboot = vec![0; 64];
        zboot[4..8].copy_from_slice(b"zimg");
        assert!(parse(&zboot, 4096).unwrap_err().to_string().contains("zboot"));
        assert!(parse(&[], 0).is_err());
    }
}
