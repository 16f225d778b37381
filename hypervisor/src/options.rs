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
    /// What the guest's RAM is mapped with.
    pub leaves: Leaves,
    /// Addresses of virtio-mmio transports that the guest is given, DMA and all.
    pub grant_dma: Vec<u64>,
    /// Addresses of virtio-mmio transports that the guest is given by way of EL2.
    pub mediate: Vec<u64>,
    /// The address of the virtio-mmio transport of the disk that a guest is saved in, or comes from.
    pub store: Option<u64>,
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
    /// Whether the guest is one that was saved, and starts when the management core is told to.
    pub resume: bool,
    /// The register that a guest that was saved does not get back, to test that it is missed.
    pub leave_out: Option<String>,
    /// What mediated devices write is not marked in one of two cases, to test that an audit finds it.
    pub unmarked: Option<Unmarked>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LevelFilter::Info,
            bbm: SizeChangeChoice::Auto,
            leaves: Leaves::Runs,
            grant_dma: Vec::new(),
            mediate: Vec::new(),
            store: None,
            icount: false,
            crash: None,
            manager: None,
            hypercalls: false,
            late_cpu: late_cpu::Choice::Refuse,
            weaken: None,
            drop_dirty: None,
            resume: false,
            leave_out: None,
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

/// The value of `leaves`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Pages alone, to compare with.
    Pages,
    /// Blocks where they fit, without contiguous runs.
    Blocks,
    /// Blocks where they fit, and runs of sixteen blocks or pages.
    Runs,
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
const KEYS: [Key; 16] = [
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
        name: "leaves",
        values: "pages|blocks|runs",
        set: |options, value| {
            let leaves = [("pages", Leaves::Pages), ("blocks", Leaves::Blocks), ("runs", Leaves::Runs)];
            options.leaves = choose(value, leaves)?;
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
        name: "store",
        values: "virtio_mmio@ADDRESS, or the address in hexadecimal",
        set: |options, value| {
            options.store = Some(transport(value)?);
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
        name: "resume",
        values: "on|off",
        set: |options, value| {
            options.resume = switch(value)?;
            Some(())
        },
    },
    Key {
        name: "leave-out",
        values: "REGISTER as the Arm ARM calls it",
        set: |options, value| {
            options.leave_out = Some(value.to_string()).filter(|name| !name.is_empty());
            options.leave_out.is_some().then_some(())
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
mod tests;
