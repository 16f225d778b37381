//! Where the payload's own image lies.

unsafe extern "C" {
    static _text_start: u8;
    static _text_end: u8;
    static _rodata_start: u8;
    static _rodata_end: u8;
    static _data_start: u8;
    static _image_end: u8;
}

/// Addresses of the image's parts, as the linker script lays them out.
pub struct Image {
    /// Code.
    pub text: core::ops::Range<u64>,
    /// Constants and relocated pointers.
    pub rodata: core::ops::Range<u64>,
    /// Variables and BSS.
    pub data: core::ops::Range<u64>,
}

/// Where this image lies.
pub fn parts() -> Image {
    let address = |symbol: *const u8| symbol as u64;
    Image {
        text: address(&raw const _text_start)..address(&raw const _text_end),
        rodata: address(&raw const _rodata_start)..address(&raw const _rodata_end),
        data: address(&raw const _data_start)..address(&raw const _image_end),
    }
}
