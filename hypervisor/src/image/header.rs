//! The first bytes of a kernel: the arm64 Image header, or what else it is.

use super::ImageError;

/// Bytes of an arm64 Image header.
const HEADER_SIZE: usize = 64;
/// `ARM\x64` at 0x38.
const IMAGE_MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");
/// Bit 0 of the flags: the kernel is big-endian.
const FLAG_BIG_ENDIAN: u64 = 1 << 0;
/// Bit 3 of the flags: the kernel may lie anywhere in RAM.
const FLAG_ANYWHERE: u64 = 1 << 3;
/// Where an Image that does not say starts behind its 2 MiB-aligned base.
const DEFAULT_TEXT_OFFSET: u64 = 0x8_0000;

/// What people pass by mistake: offset, magic, what it is, what to do.
const MISTAKES: [(usize, &[u8], &str, &str); 12] = [
    (0, b"\x7fELF", "an ELF file", "pass the raw arm64 Image (arch/arm64/boot/Image), not vmlinux"),
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it first (gzip -dc Image.gz > Image)"),
    (0, b"BZh", "compressed with bzip2", "unpack it first (bzip2 -dc)"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unpack it first (xz -dc)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first (zstd -dc)"),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", "unpack it first (lz4 -dc)"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it first (lz4 -dc)"),
    (4, b"zimg", "an EFI zboot image (vmlinuz.efi)", "pass the arm64 Image that is packed inside it"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image (uImage)", "pass the arm64 Image that it was made from"),
    (0, b"\xd0\x0d\xfe\xed", "a FIT image or a device tree", "pass the arm64 Image (arch/arm64/boot/Image)"),
    (0, b"ANDROID!", "an Android boot image", "pass the arm64 Image that is packed inside it"),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit Arm zImage", "pass a 64-bit arm64 Image"),
];

/// A kernel that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// An arm64 Image.
    Image {
        /// Bytes from the 2 MiB-aligned base to its first byte.
        text_offset: u64,
        /// Bytes that it takes from its first one on, BSS included. 0 in kernels before Linux 3.17, which don't say.
        image_size: u64,
        /// Its page size in bytes, where it says.
        page_size: Option<u32>,
        /// Whether its base may lie anywhere in RAM; else as near to the start of RAM as can be.
        anywhere: bool,
    },
    /// Anything else: a program that is entered at its first byte, and that may look for its device tree below itself.
    Raw,
}

impl Kernel {
    /// Bytes from the 2 MiB-aligned base to its first byte, which is its entry point.
    pub const fn text_offset(&self) -> u64 {
        match *self {
            Self::Image { text_offset, .. } => text_offset,
            Self::Raw => 0,
        }
    }

    /// Bytes that it says it takes, BSS included; 0 if it does not say.
    pub const fn image_size(&self) -> u64 {
        match *self {
            Self::Image { image_size, .. } => image_size,
            Self::Raw => 0,
        }
    }
}

/// Looks at a kernel's bytes; the first 64 decide.
///
/// # Errors
///
/// [`ImageError::Mistake`], [`ImageError::BigEndian`], [`ImageError::Empty`].
pub fn examine(bytes: &[u8]) -> Result<Kernel, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let stands = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let whole_header = bytes.len() >= HEADER_SIZE;
    if !(whole_header && stands(IMAGE_MAGIC.0, IMAGE_MAGIC.1)) {
        let mistake = MISTAKES.iter().find(|(offset, magic, ..)| stands(*offset, magic));
        return match mistake {
            Some(&(_, _, what, remedy)) => Err(ImageError::Mistake { what, remedy }),
            None => Ok(Kernel::Raw),
        };
    }
    let field = |offset: usize| bytes.get(offset..).and_then(|rest| rest.first_chunk().copied());
    let [text_offset, image_size, flags] = [0x08, 0x10, 0x18].map(|offset| field(offset).map_or(0, u64::from_le_bytes));
    if flags & FLAG_BIG_ENDIAN != 0 {
        return Err(ImageError::BigEndian);
    }
    let page_size = match flags >> 1 & 0b11 {
        1 => Some(4 << 10),
        2 => Some(16 << 10),
        3 => Some(64 << 10),
        _ => None,
    };
    // "Where image_size is zero, text_offset can be assumed to be 0x80000."
    let text_offset = if image_size == 0 { DEFAULT_TEXT_OFFSET } else { text_offset };
    Ok(Kernel::Image { text_offset, image_size, page_size, anywhere: flags & FLAG_ANYWHERE != 0 })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    /// A header and nothing behind it.
    fn header(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_SIZE];
        bytes[0x08..0x10].copy_from_slice(&text_offset.to_le_bytes());
        bytes[0x10..0x18].copy_from_slice(&image_size.to_le_bytes());
        bytes[0x18..0x20].copy_from_slice(&flags.to_le_bytes());
        bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
        bytes
    }

    #[test]
    fn an_image_says_where_it_wants_to_be() {
        assert_eq!(
            examine(&header(0, 0x200_0000, 0b1010)),
            Ok(Kernel::Image { text_offset: 0, image_size: 0x200_0000, page_size: Some(4096), anywhere: true })
        );
        assert_eq!(
            examine(&header(0x1_2000, 1, 0b0110)),
            Ok(Kernel::Image { text_offset: 0x1_2000, image_size: 1, page_size: Some(65536), anywhere: false })
        );
    }

    #[test]
    fn an_image_that_does_not_say_its_size_starts_at_0x80000() {
        let kernel = examine(&header(0x1234, 0, 0)).unwrap();
        assert_eq!((kernel.text_offset(), kernel.image_size()), (0x8_0000, 0));
    }

    #[test]
    fn a_big_endian_image_is_refused() {
        assert_eq!(examine(&header(0, 4096, 0b1011)), Err(ImageError::BigEndian));
    }

    #[test]
    fn an_image_that_is_also_a_pe_file_or_looks_compressed_is_still_an_image() {
        let mut bytes = header(0, 4096, 0);
        bytes[..2].copy_from_slice(b"MZ");
        assert!(matches!(examine(&bytes), Ok(Kernel::Image { .. })));
        bytes[..2].copy_from_slice(b"\x1f\x8b");
        assert!(matches!(examine(&bytes), Ok(Kernel::Image { .. })));
    }

    #[test]
    fn every_mistake_is_named() {
        for (offset, magic, what, remedy) in MISTAKES {
            for length in [offset + magic.len(), 64, 4096] {
                let mut bytes = vec![0; length.max(offset + magic.len())];
                bytes[offset..offset + magic.len()].copy_from_slice(magic);
                assert_eq!(examine(&bytes), Err(ImageError::Mistake { what, remedy }));
            }
        }
        let sentence = examine(b"\x7fELF\x02\x01").unwrap_err().to_string();
        assert!(sentence.contains("not vmlinux"), "{sentence}");
        assert_eq!(examine(&[]), Err(ImageError::Empty));
    }

    #[test]
    fn anything_else_is_raw() {
        assert_eq!(examine(&[0]), Ok(Kernel::Raw));
        assert_eq!(examine(&header(0, 0, 0)[..63]), Ok(Kernel::Raw));
        assert_eq!(Kernel::Raw.text_offset(), 0);
    }
}
