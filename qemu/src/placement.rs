//! Where the guest's kernel and initramfs lie in RAM when the hypervisor starts.
//!
//! QEMU itself loads the hypervisor at the start of RAM (plus its `text_offset`, plus 2 MiB for its own boot code) and
//! the device tree at the middle of RAM or at 128 MiB, whichever is lower. The modules go behind that.

use crate::guest_kernel::Shape;
use crate::size::Size;
use anyhow::{Result, bail};

/// Where the `virt` machine's RAM starts.
pub const RAM_BASE: u64 = 0x4000_0000;
/// Kernels and, for the largest leaves, everything else start at 2 MiB boundaries.
const ALIGN: u64 = 2 << 20;
/// Room for QEMU's device tree (at most 2 MiB), and some to spare.
const TREE_ROOM: u64 = 16 << 20;

/// Physical addresses of the two modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Of the kernel file's first byte.
    pub kernel: u64,
    /// Of the initramfs's first byte; also where it would be if there is none.
    pub initrd: u64,
}

/// Places a kernel and an initramfs of `initrd_size` bytes (0 if there is none) in a machine with `memory`.
///
/// # Errors
/// If the memory is too small for them; the sentence says how much would do.
pub fn place(memory: Size, kernel: Shape, initrd_size: u64) -> Result<Placement> {
    let tree = RAM_BASE + (memory.0 / 2).min(128 << 20);
    let base = (tree + TREE_ROOM).next_multiple_of(ALIGN);
    let kernel_at = base + kernel.text_offset;
    let initrd_at = kernel_at.saturating_add(kernel.size).checked_next_multiple_of(ALIGN);
    let end = initrd_at.and_then(|at| at.checked_add(initrd_size));
    let (Some(initrd), Some(end)) = (initrd_at, end) else {
        bail!(
            "the kernel's header claims an impossible size of {} bytes, so the file is damaged; copy or download it again",
            kernel.size
        );
    };
    if end > RAM_BASE + memory.0 {
        // With 256 MiB and more, the device tree stays at 128 MiB, so the sum is what is needed.
        let behind = end - tree;
        let enough = Size::mib(((128 << 20) + behind).div_ceil(ALIGN) * 2);
        bail!(
            "--memory {}M is too little for this kernel and initramfs; use --memory {}M or more",
            memory.0 >> 20,
            enough.0 >> 20
        );
    }
    Ok(Placement { kernel: kernel_at, initrd })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Shape = Shape { text_offset: 0, size: 30 << 20, is_image: true };

    #[test]
    fn nothing_overlaps_and_all_is_aligned() {
        for mib in [128, 192, 256, 512, 1024, 4096, 65536] {
            for (text_offset, size, initrd) in [(0, 30 << 20, 1 << 20), (0x8_0000, 5 << 20, 0), (0, 0x123_4567, 12345)]
            {
                let memory = Size::mib(mib);
                let at = place(memory, Shape { text_offset, size, is_image: true }, initrd).unwrap();
                let tree = RAM_BASE + (memory.0 / 2).min(128 << 20);
                assert!((at.kernel - text_offset).is_multiple_of(ALIGN));
                assert!(at.initrd.is_multiple_of(ALIGN));
                assert!(at.kernel >= tree + (2 << 20));
                assert!(at.initrd >= at.kernel + size);
                assert!(at.initrd + initrd <= RAM_BASE + memory.0);
            }
        }
    }

    #[test]
    fn the_installer_fits_into_512_mib() {
        assert!(place(Size::mib(512), KERNEL, 60 << 20).is_ok());
    }

    #[test]
    fn advice_about_memory_is_enough() {
        for initrd in [0, 1, 40 << 20, 700 << 20] {
            let text = place(Size::mib(64), KERNEL, initrd).unwrap_err().to_string();
            let advice: Size = text.split_whitespace().rev().nth(2).unwrap().parse().unwrap();
            place(advice, KERNEL, initrd).unwrap();
        }
    }

    #[test]
    fn an_absurd_header_is_an_error() {
        assert!(place(Size::mib(512), Shape { text_offset: 0, size: u64::MAX, is_image: true }, 0).is_err());
        assert!(
            place(Size::mib(512), Shape { text_offset: 0, size: u64::MAX - (600 << 20), is_image: true }, u64::MAX)
                .is_err()
        );
    }
}
