//! Memory sizes as people write and read them: `512M`, `4G`, `4GiB`.

use std::fmt;
use std::str::FromStr;

/// Bytes of a page: the guest's memory is logged in these.
pub const PAGE: u64 = 4096;

/// An amount of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// So many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "not an amount of memory; write a number with M, G or T behind it, as in 512M, 1.5G or 4G";
        let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
        let shift = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
            "k" => 10,
            // A bare number is MiB, as on QEMU's own command line.
            "m" => 20,
            "" if unit.is_empty() => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(FORM.into()),
        };
        if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(FORM.into());
        }
        let bytes = match number.split_once('.') {
            None => number.parse::<u64>().map_err(|_| FORM)?.checked_mul(1 << shift),
            // To whole MiB: 1.3G is no whole number of bytes, and nobody means it to be.
            Some((whole, part)) if part.len() <= 9 && (!whole.is_empty() || !part.is_empty()) => {
                let digits = |text: &str| if text.is_empty() { Ok(0) } else { text.parse::<u64>().map_err(|_| FORM) };
                let (whole, scale) = (digits(whole)?, 10_u128.pow(part.len() as u32));
                let fraction = ((u128::from(digits(part)?) << shift) / scale) as u64;
                whole
                    .checked_mul(1 << shift)
                    .and_then(|bytes| bytes.checked_add(fraction))
                    .map(|bytes| bytes >> 20 << 20)
            }
            Some(_) => return Err(FORM.into()),
        };
        match bytes {
            None => Err("more than 64 bits can count; write less, as in 4G".into()),
            Some(0) => Err("a machine without memory can't run; write how much it has, as in 512M".into()),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 30) => write!(f, "{} GiB", bytes >> 30),
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} KiB", bytes >> 10),
        }
    }
}

/// Bytes for people, to a tenth of a MiB.
pub fn short(bytes: u64) -> String {
    match bytes {
        0..=0xf_ffff => format!("{} KiB", bytes >> 10),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("1g", 1 << 30),
            ("2048", 2 << 30),
            ("64kB", 65536),
            ("1.5G", 1536 << 20),
            ("0.5g", 512 << 20),
            (".25G", 256 << 20),
            ("1.3G", 1331 << 20),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in [
            "",
            "G",
            "-1G",
            "4X",
            ".",
            ".G",
            "1.G.",
            "1.5.G",
            "1.-5G",
            "0.0G",
            "+1G",
            "0",
            "0M",
            "99999999999999G",
            "4 G",
            "iB",
            "4ib",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_in_the_largest_whole_unit() {
        assert_eq!(Size(4 << 30).to_string(), "4 GiB");
        assert_eq!(Size(1536 << 20).to_string(), "1536 MiB");
        assert_eq!(Size(4096).to_string(), "4 KiB");
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(short((1 << 20) - 1), "1023 KiB");
        assert_eq!(short(3 << 19), "1.5 MiB");
    }
}
