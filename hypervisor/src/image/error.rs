//! Why a guest can't be loaded, in sentences for people.

use core::fmt;

/// What is wrong with the kernel, or with the room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// A file of a kind that can't be started, passed by mistake.
    Mistake {
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A big-endian kernel.
    BigEndian,
    /// Nothing.
    Empty,
    /// A header whose sizes wrap round the address space.
    Size {
        /// `text_offset`.
        text_offset: u64,
        /// `image_size`.
        image_size: u64,
    },
    /// No free range of RAM is large enough.
    NoRoom {
        /// For what.
        what: &'static str,
        /// Bytes that it takes.
        size: u64,
        /// Bytes of the guest's largest free range.
        largest: u64,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Mistake { what, remedy } => write!(f, "the guest kernel is {what}: {remedy}"),
            Self::BigEndian => f.write_str("the guest kernel is big-endian: pass a little-endian one"),
            Self::Empty => f.write_str("the guest kernel is an empty file: pass an arm64 Image"),
            Self::Size { text_offset, image_size } => write!(
                f,
                "the guest kernel's header says text_offset {text_offset:#x} and image_size {image_size:#x}, which is \
                 no range of memory: the file is damaged"
            ),
            Self::NoRoom { what, size, largest } => write!(
                f,
                "there is no room for the guest's {what}: it takes {size:#x} bytes, and the largest free range of RAM \
                 has {largest:#x}; give more memory"
            ),
        }
    }
}

impl core::error::Error for ImageError {}
