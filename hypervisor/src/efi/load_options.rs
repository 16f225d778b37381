//! What a boot option, or a line typed into the EFI shell, says behind the image's name.
//!
//! `[NAME] [kernel=PATH] [initrd=PATH] [OPTION=VALUE ...] [-- ARGUMENT ...]`: the guest's files on the volume that the
//! image came from, the hypervisor's own options, and behind `--` the guest kernel's arguments.

use super::EfiError;
use alloc::string::String;

/// The load options, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Path of the guest's kernel, with `/` or firmware's own `\\`.
    pub kernel: Option<String>,
    /// Path of the guest's initramfs.
    pub initrd: Option<String>,
    /// The hypervisor's own options.
    pub hypervisor: String,
    /// The guest kernel's arguments.
    pub guest: String,
}

impl LoadOptions {
    /// Reads load options: UTF-16 up to a NUL or the end.
    ///
    /// # Errors
    ///
    /// [`EfiError::LoadOptions`] where they are no text: some firmware passes numbers of its own.
    pub fn parse(raw: &[u16]) -> Result<Self, EfiError> {
        let end = raw.iter().position(|&unit| unit == 0).unwrap_or(raw.len());
        let text = raw.get(..end).map(String::from_utf16);
        let text = text.and_then(Result::ok).ok_or(EfiError::LoadOptions)?;
        if text.bytes().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
            return Err(EfiError::LoadOptions);
        }
        let mut options = Self::default();
        let mut behind = false;
        for word in without_name(text.trim_ascii()).split_ascii_whitespace() {
            match word.split_once('=') {
                _ if !behind && word == "--" => behind = true,
                Some(("kernel", name)) if !behind => options.kernel = Some(name.into()),
                Some(("initrd", name)) if !behind => options.initrd = Some(name.into()),
                _ => {
                    let line = if behind { &mut options.guest } else { &mut options.hypervisor };
                    if !line.is_empty() {
                        line.push(' ');
                    }
                    line.push_str(word);
                }
            }
        }
        Ok(options)
    }
}

/// Leaves out the image's own name, which the shell passes as the first word, perhaps in quotes, and a boot option does
/// not. No name has a `=` in it, and every option has.
fn without_name(text: &str) -> &str {
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted.split_once('"').map_or("", |(_, rest)| rest);
    }
    let (first, rest) = text.split_once(|letter: char| letter.is_ascii_whitespace()).unwrap_or((text, ""));
    if first.contains('=') || first == "--" { text } else { rest }
}
