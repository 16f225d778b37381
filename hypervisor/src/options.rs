//! The hypervisor's own command line: words of the form `key=value` in `/chosen/bootargs`, separated by blanks.
//!
//! A key that stands twice counts as it stands last, as on Linux's command line; `grant-dma` and `mediate` add up.

use crate::late_cpu;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use log::LevelFilter;

/// What the command line says, or what holds without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What goes to the console.
    pub log: LevelFilter,
    /// How the size of a stage-2 leaf is changed.
    pub bbm: SizeChangeChoice,
    /// Addresses of virtio-mmio transports that the guest is given, DMA and all.
    pub grant_dma: Vec<u64>,
    /// Addresses of virtio-mmio transports that the guest is given by way of EL2.
    pub mediate: Vec<u64>,
    /// Whether instructions at EL2 are counted, which makes sense under QEMU's `-icount` only.
    pub icount: bool,
    /// A crash on purpose as the guest starts, to test the crash report.
    pub crash: Option<Crash>,
    /// Whether a CPU is kept back from the guest for management; when absent, it is if a service needs it.
    pub manager: Option<bool>,
    /// Whether the guest may use the hypervisor's own calls for its memory.
    pub hypercalls: bool,
    /// What happens to a CPU that has less than those that were compared before the guest started.
    pub late_cpu: late_cpu::Choice,
    /// The CPU with these affinity fields seems to have no FEAT_BBM from its second start on, to test `late-cpu`.
    pub weaken: Option<u64>,
    /// The management core leaves every so manyth dirty page out of its reports, to test that an audit finds it.
    pub drop_dirty: Option<u64>,
    /// What mediated devices write is not marked in one of two cases, to test that an audit finds it.
    pub unmarked: Option<Unmarked>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LevelFilter::Info,
            bbm: SizeChangeChoice::Auto,
            grant_dma: Vec::new(),
            mediate: Vec::new(),
            icount: false,
            crash: None,
            manager: None,
            hypercalls: false,
            late_cpu: late_cpu::Choice::Refuse,
            weaken: None,
            drop_dirty: None,
            unmarked: None,
        }
    }
}

/// The value of `bbm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChangeChoice {
    /// What the weakest CPU allows.
    Auto,
    /// Break-before-make.
    BreakBeforeMake,
    /// Through the nT bit (FEAT_BBML1).
    NoTranslation,
    /// In one store (FEAT_BBML2).
    Direct,
}

/// The value of `crash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// A Rust panic.
    Panic,
    /// A data abort at EL2.
    Abort,
    /// An EL2 stack that runs into its guard page.
    Overflow,
}

/// The value of `unmarked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmarked {
    /// What a device has while dirty pages are reported.
    InFlight,
    /// What a device gives back.
    Completed,
}

/// One key: its name, the values that it takes, and what a value does.
struct Key {
    name: &'static str,
    values: &'static str,
    /// Nothing when the value is not one of those.
    set: fn(&mut Options, &str) -> Option<()>,
}

/// All keys; messages list them in this order.
const KEYS: [Key; 12] = [
    Key {
        name: "log",
        values: "off|error|warn|info|debug|trace",
        set: |options, value| {
            options.log = choose(
                value,
                [
                    ("off", LevelFilter::Off),
                    ("error", LevelFilter::Error),
                    ("warn", LevelFilter::Warn),
                    ("info", LevelFilter::Info),
                    ("debug", LevelFilter::Debug),
                    ("trace", LevelFilter::Trace),
                ],
            )?;
            Some(())
        },
    },
    Key {
        name: "bbm",
        values: "auto|break|nt|direct",
        set: |options, value| {
            options.bbm = choose(
                value,
                [
                    ("auto", SizeChangeChoice::Auto),
                    ("break", SizeChangeChoice::BreakBeforeMake),
                    ("nt", SizeChangeChoice::NoTranslation),
                    ("direct", SizeChangeChoice::Direct),
                ],
            )?;
            Some(())
        },
    },
    Key {
        name: "grant-dma",
        values: "ADDRESS in hexadecimal",
        set: |options, value| {
            options.grant_dma.push(hexadecimal(value)?);
            Some(())
        },
    },
    Key {
        name: "mediate",
        values: "DEVICE,... each the name of a node, virtio_mmio@ADDRESS, or its address in hexadecimal",
        set: |options, value| {
            let devices: Option<Vec<u64>> = value.split(',').map(transport).collect();
            for device in devices? {
                if !options.mediate.contains(&device) {
                    options.mediate.push(device);
                }
            }
            Some(())
        },
    },
    Key {
        name: "icount",
        values: "on|off",
        set: |options, value| {
            options.icount = switch(value)?;
            Some(())
        },
    },
    Key {
        name: "crash",
        values: "panic|abort|overflow",
        set: |options, value| {
            let crashes = [("panic", Crash::Panic), ("abort", Crash::Abort), ("overflow", Crash::Overflow)];
            options.crash = Some(choose(value, crashes)?);
            Some(())
        },
    },
    Key {
        name: "manager",
        values: "on|off",
        set: |options, value| {
            options.manager = Some(switch(value)?);
            Some(())
        },
    },
    Key {
        name: "hypercalls",
        values: "on|off",
        set: |options, value| {
            options.hypercalls = switch(value)?;
            Some(())
        },
    },
    Key {
        name: "late-cpu",
        values: "refuse|repaint",
        set: |options, value| {
            options.late_cpu =
                choose(value, [("refuse", late_cpu::Choice::Refuse), ("repaint", late_cpu::Choice::Repaint)])?;
            Some(())
        },
    },
    Key {
        name: "weaken",
        values: "MPIDR in hexadecimal",
        set: |options, value| {
            options.weaken = Some(hexadecimal(value)?);
            Some(())
        },
    },
    Key {
        name: "drop-dirty",
        values: "NUMBER from 1",
        set: |options, value| {
            options.drop_dirty = Some(value.parse().ok().filter(|&every| every > 0)?);
            Some(())
        },
    },
    Key {
        name: "unmarked",
        values: "in-flight|completed",
        set: |options, value| {
            let cases = [("in-flight", Unmarked::InFlight), ("completed", Unmarked::Completed)];
            options.unmarked = Some(choose(value, cases)?);
            Some(())
        },
    },
];

/// The choice that `value` names.
fn choose<T: Copy, const N: usize>(value: &str, choices: [(&str, T); N]) -> Option<T> {
    choices.iter().find(|(name, _)| *name == value).map(|&(_, choice)| choice)
}

fn hexadecimal(value: &str) -> Option<u64> {
    let digits = value.strip_prefix("0x").unwrap_or(value);
    // from_str_radix takes a sign; an address has none.
    let unsigned = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| unsigned)
}

/// The address of the transport that `value` names, by its node or by the address alone.
fn transport(value: &str) -> Option<u64> {
    hexadecimal(value.strip_prefix("virtio_mmio@").unwrap_or(value))
}

fn switch(value: &str) -> Option<bool> {
    choose(value, [("on", true), ("off", false)])
}

/// A word of the command line that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionError {
    /// No such key.
    UnknownKey {
        /// The word.
        word: String,
    },
    /// The key has no such value.
    BadValue {
        /// The word.
        word: String,
        /// What it may be.
        values: &'static str,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the hypervisor's command line: ")?;
        match self {
            Self::UnknownKey { word } => {
                write!(f, "there is no option {word}; known are")?;
                for (index, key) in KEYS.iter().enumerate() {
                    write!(f, "{} {}={}", if index == 0 { "" } else { "," }, key.name, key.values)?;
                }
                Ok(())
            }
            Self::BadValue { word, values } => write!(f, "{word} has a value that is not known; write {values}"),
        }
    }
}

impl core::error::Error for OptionError {}

impl Options {
    /// Whether a management core is asked for.
    #[must_use]
    pub fn wants_manager(&self) -> bool {
        self.manager == Some(true)
    }

    /// Reads a command line.
    ///
    /// # Errors
    ///
    /// The first word that says nothing.
    pub fn parse(bootargs: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for word in bootargs.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let key = KEYS.iter().find(|key| key.name == name);
            let key = key.ok_or_else(|| OptionError::UnknownKey { word: word.to_string() })?;
            (key.set)(&mut options, value)
                .ok_or_else(|| OptionError::BadValue { word: word.to_string(), values: key.values })?;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_line_leaves_the_defaults() {
        assert_eq!(Options::parse(" \t "), Ok(Options::default()));
    }

    #[test]
    fn every_option_is_read() {
        let line = "log=debug bbm=break grant-dma=0xa003e00 grant-dma=A003C00 mediate=virtio_mmio@a000000,0xa000200 \
                    mediate=a000000 icount=on crash=overflow manager=off \
                    hypercalls=on late-cpu=repaint weaken=0x1 drop-dirty=1000 unmarked=completed";
        assert_eq!(
            Options::parse(line),
            Ok(Options {
                log: LevelFilter::Debug,
                bbm: SizeChangeChoice::BreakBeforeMake,
                grant_dma: Vec::from([0xa00_3e00, 0xa00_3c00]),
                mediate: Vec::from([0xa00_0000, 0xa00_0200]),
                icount: true,
                crash: Some(Crash::Overflow),
                manager: Some(false),
                hypercalls: true,
                late_cpu: late_cpu::Choice::Repaint,
                weaken: Some(1),
                drop_dirty: Some(1000),
                unmarked: Some(Unmarked::Completed),
            })
        );
    }

    /// Goes through the lists that users are shown: each value in them is taken, and changes something or is the
    /// default.
    #[test]
    fn the_listed_values_are_the_legal_ones() {
        for key in &KEYS {
            let mut seen = Vec::new();
            for value in key.values.split('|').filter(|value| !value.contains(' ')) {
                let options = Options::parse(&alloc::format!("{}={value}", key.name)).unwrap();
                assert!(!seen.contains(&options), "{}={value} does what another value does", key.name);
                seen.push(options);
            }
        }
    }

    #[test]
    fn the_last_of_two_counts() {
        assert_eq!(Options::parse("bbm=nt bbm=direct").unwrap().bbm, SizeChangeChoice::Direct);
    }

    #[test]
    fn an_unknown_key_is_named_and_the_known_ones_are_listed() {
        let sentence = Options::parse("log=info lgo=info").unwrap_err().to_string();
        assert!(sentence.contains("no option lgo=info"), "{sentence}");
        assert!(KEYS.iter().all(|key| sentence.contains(key.name) && sentence.contains(key.values)), "{sentence}");
    }

    #[test]
    fn a_bad_value_is_named_and_the_legal_ones_are_listed() {
        for word in [
            "log=loud",
            "log",
            "log=",
            "bbm=2",
            "mediate=",
            "mediate=a000000,",
            "mediate=virtio_mmio@",
            "mediate=virtio@a000000",
            "icount=yes",
            "crash=off",
            "manager=1",
            "weaken=x",
            "drop-dirty=0",
        ] {
            let error = Options::parse(word).unwrap_err();
            let name = word.split('=').next();
            let values = KEYS.iter().find(|key| Some(key.name) == name).unwrap().values;
            assert_eq!(error, OptionError::BadValue { word: word.to_string(), values });
            assert!(error.to_string().contains(word) && error.to_string().contains(values));
        }
    }

    #[test]
    fn an_address_is_unsigned_and_has_64_bits() {
        for word in ["grant-dma=", "grant-dma=0x", "grant-dma=+1", "grant-dma=-1", "grant-dma=10000000000000000"] {
            assert!(matches!(Options::parse(word), Err(OptionError::BadValue { .. })), "{word}");
        }
        assert_eq!(Options::parse("grant-dma=ffffffffffffffff").unwrap().grant_dma, [u64::MAX]);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC*", words in "((log|bbm|grant-dma|crash)=?[a-z0-9x+-]{0,18} ?){0,8}") {
            let _ = Options::parse(&line);
            let _ = Options::parse(&words);
        }
    }
}
