//! Programs of a few instructions, made by hand, where a compiler would only hide what happens.

/// Where the `virt` machine's RAM starts.
pub const RAM: u64 = 0x4000_0000;
/// Where QEMU puts an Image whose `text_offset` is 0, and so where the hypervisor is when a [`starter`] starts it.
pub const HYPERVISOR: u64 = RAM + (2 << 20);
/// Where a [`starter`] lies.
const STARTER: u64 = 16 << 20;

/// An arm64 Image (Documentation/arch/arm64/booting.rst) with this header and these instructions behind it.
fn image(text_offset: u64, image_size: u64, instructions: &[u32]) -> Vec<u8> {
    let mut image = Vec::new();
    image.extend_from_slice(&0x1400_0010_u32.to_le_bytes()); // b #64: over the header
    image.extend_from_slice(&[0; 4]);
    // Little-endian, 4 KiB pages, may lie anywhere.
    for field in [text_offset, image_size, 0b1010, 0, 0, 0] {
        image.extend_from_slice(&u64::to_le_bytes(field));
    }
    image.extend_from_slice(b"ARM\x64\0\0\0\0");
    image.extend(instructions.iter().flat_map(|instruction| instruction.to_le_bytes()));
    image
}

/// A guest that powers off at once: PSCI SYSTEM_OFF, by HVC.
pub fn guest() -> Vec<u8> {
    guest_of_size(4096)
}

/// [`guest`] whose header claims another `image_size`.
pub fn guest_of_size(image_size: u64) -> Vec<u8> {
    // movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .
    image(0, image_size, &[0x5280_0100, 0x72b0_8000, 0xd400_0002, 0x1400_0000])
}

/// An Image that QEMU starts in the hypervisor's stead, and that starts the hypervisor (which lies at [`HYPERVISOR`])
/// with any value in x0.
pub fn starter(x0: u64) -> Vec<u8> {
    // ldr x0, value; ldr x4, entry; br x4; nop; value: .quad; entry: .quad
    let mut instructions = vec![0x5800_0080, 0x5800_00a4, 0xd61f_0080, 0xd503_201f];
    for quad in [x0, HYPERVISOR] {
        instructions.extend([quad as u32, (quad >> 32) as u32]);
    }
    image(STARTER, 4096, &instructions)
}
