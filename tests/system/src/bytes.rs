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

/// movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .: PSCI SYSTEM_OFF
const POWER_OFF: [u32; 4] = [0x5280_0100, 0x72b0_8000, 0xd400_0002, 0x1400_0000];

/// A guest that powers off at once: PSCI SYSTEM_OFF, by HVC.
pub fn guest() -> Vec<u8> {
    guest_of_size(4096)
}

/// [`guest`] whose header claims another `image_size`.
pub fn guest_of_size(image_size: u64) -> Vec<u8> {
    image(0, image_size, &POWER_OFF)
}

/// What [`guest_that_finds_zeros`] and [`raw_guest`] say.
pub const YES: &str = "Y";
/// What they say otherwise.
pub const NO: &str = "N";

/// A guest that says whether all bytes are zero from `start` up to `end`, both below 4 GiB and multiples of 16, and powers
/// off.
pub fn guest_that_finds_zeros(start: u64, end: u64) -> Vec<u8> {
    let mut check = [number(1, start), number(2, end)].concat();
    check.extend([
        0xa8c1_1023, // again: ldp x3, x4, [x1], #16
        0xaa04_0063, // orr x3, x3, x4
        0,           // cbnz x3, no
        0xeb02_003f, // cmp x1, x2
        0x54ff_ff83, // b.lo again
    ]);
    image(0, 4096, &saying(check, 0xb500_0003))
}

/// A raw binary that says whether it begins 2 MiB behind the start of RAM and has a device tree's address in x0 that is the
/// start of RAM, and powers off.
pub fn raw_guest() -> Vec<u8> {
    let mut check = vec![0x1000_0004]; // adr x4, .
    check.extend(number(1, RAM + (2 << 20)));
    check.extend([0xeb01_009f, 0]); // cmp x4, x1; b.ne no
    check.extend(number(1, RAM));
    check.extend([0xeb01_001f, 0]); // cmp x0, x1; b.ne no
    check.push(0xb940_0002); // ldr w2, [x0]
    check.extend(number(1, 0xedfe_0dd0));
    check.extend([0x6b01_005f, 0]); // cmp w2, w1; b.ne no
    saying(check, 0x5400_0001).into_iter().flat_map(u32::to_le_bytes).collect()
}

/// movz, movk: a number of 32 bits in an X register.
fn number(register: u32, value: u64) -> Vec<u32> {
    let half = |shift: u32| (value >> shift & 0xffff) as u32;
    vec![0xd280_0000 | half(0) << 5 | register, 0xf2a0_0000 | half(16) << 5 | register]
}

/// Instructions of which the zeros are made branches like `branch`, taken where the answer is no; behind them the answer is
/// yes. It is printed on QEMU's UART.
fn saying(mut check: Vec<u32>, branch: u32) -> Vec<u32> {
    let no = check.len() + 2;
    for (at, instruction) in check.iter_mut().enumerate().filter(|(_, instruction)| **instruction == 0) {
        *instruction = branch | ((no - at) as u32) << 5;
    }
    let letter = |text: &str| 0x5280_0005 | u32::from(text.as_bytes()[0]) << 5; // movz w5, #letter
    check.extend([letter(YES), 0x1400_0002, letter(NO)]); // b over the next
    // movz x6, #0x900, lsl #16; strb w5, [x6]; movz w5, #10; strb w5, [x6]
    check.extend([0xd2a1_2006, 0x3900_00c5, 0x5280_0145, 0x3900_00c5]);
    check.extend(POWER_OFF);
    check
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

/// An EFI application that takes all memory that firmware has in pieces of 1 MiB and more, all but one of 7 MiB, and keeps
/// it: enough for loading the hypervisor's file, not for what the hypervisor needs.
pub fn hog() -> Vec<u8> {
    efi_application(&[
        0xa9bd_7bfd, // stp x29, x30, [sp, #-48]!
        0xa901_53f3, // stp x19, x20, [sp, #16]
        0xf940_3033, // ldr x19, [x1, #96]: boot services
        0xd280_0000, // mov x0, #0: any pages
        0xd280_0041, // mov x1, #2: loader data
        0xd280_e002, // mov x2, #1792: 7 MiB
        0x9100_83e3, // add x3, sp, #32
        0xf940_1664, // ldr x4, [x19, #40]: AllocatePages
        0xd63f_0080, // blr x4
        0xf940_13f4, // ldr x20, [sp, #32]
        0xd280_0000, // again: mov x0, #0
        0xd280_0041, // mov x1, #2
        0xd280_2002, // mov x2, #256: 1 MiB
        0x9100_a3e3, // add x3, sp, #40
        0xf940_1664, // ldr x4, [x19, #40]
        0xd63f_0080, // blr x4
        0xb4ff_ff40, // cbz x0, again
        0xaa14_03e0, // mov x0, x20
        0xd280_e001, // mov x1, #1792
        0xf940_1a64, // ldr x4, [x19, #48]: FreePages
        0xd63f_0080, // blr x4
        0xd280_0000, // mov x0, #0: success
        0xa941_53f3, // ldp x19, x20, [sp, #16]
        0xa8c3_7bfd, // ldp x29, x30, [sp], #48
        0xd65f_03c0, // ret
    ])
}

/// A PE32+ file (Microsoft PE Format) with one section, at whose beginning it is entered.
fn efi_application(instructions: &[u32]) -> Vec<u8> {
    const CODE: u32 = 0x1000;
    let mut file = Vec::new();
    let mut put = |value: u64, bytes: usize| {
        let end = file.len() + bytes;
        file.extend_from_slice(&value.to_le_bytes()[..bytes.min(8)]);
        file.resize(end, 0);
    };
    put(0x5a4d, 60);
    put(0x40, 4);
    // COFF: ARM64, one section, 0xa0 bytes of optional header, executable.
    for (value, bytes) in [(0x4550, 4), (0xaa64, 2), (1, 2), (0, 12), (0xa0, 2), (0x206, 2)] {
        put(value, bytes);
    }
    // PE32+; sizes of code and data; entry, base of code, image base; alignments in memory and in the file.
    let sizes = [(0x20b, 4), (0x200, 4), (0, 8), (CODE.into(), 4), (CODE.into(), 4), (0, 8), (0x1000, 4), (0x200, 4)];
    // Versions; sizes of image and headers, checksum; EFI application; stack and heap; loader flags, six directories.
    let rest = [(0, 16), (0x2000, 4), (0x200, 4), (0, 4), (10, 4), (0, 32), (0, 4), (6, 4), (0, 48)];
    let name = u64::from_le_bytes(*b".text\0\0\0");
    let section = [(name, 8), (0x200, 4), (CODE.into(), 4), (0x200, 4), (0x200, 4), (0, 12), (0x6000_0020, 4)];
    for (value, bytes) in sizes.into_iter().chain(rest).chain(section) {
        put(value, bytes);
    }
    file.resize(0x200, 0);
    file.extend(instructions.iter().flat_map(|instruction| instruction.to_le_bytes()));
    file.resize(0x400, 0);
    file
}
