//! What a machine is: what must be the same where it goes on.

use core::fmt;

/// What a fact is about. Several CPUs, ranges and devices are told apart by [`Fact::index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Field {
    /// The hypervisor's version: [`version_word`].
    Version = 1,
    /// The version of what the hypervisor saves of CPUs and devices.
    State = 2,
    /// The guest's ranges of memory.
    Ranges = 3,
    /// A range's first address.
    RamStart = 4,
    /// The first address behind a range.
    RamEnd = 5,
    /// CNTFRQ_EL0: the counter's frequency in Hz.
    Frequency = 6,
    /// The version of the interrupt controller.
    Gic = 7,
    /// Where its distributor is.
    Distributor = 8,
    /// Where the serial port is; 0 if there is none.
    Console = 9,
    /// Where the real-time clock is; 0 if there is none.
    Clock = 10,
    /// The affinity of the CPU that is kept back for management.
    Manager = 11,
    /// Devices that the guest has by way of the hypervisor.
    Devices = 12,
    /// Where one is.
    Device = 13,
    /// CPUs, the one kept back included.
    Cpus = 14,
    /// A register of [`CPU_REGISTERS`] on a CPU.
    Cpu = 15,
}

/// The registers that a machine's facts have of each CPU.
pub const CPU_REGISTERS: [&str; 13] = [
    "MIDR_EL1",
    "MPIDR_EL1",
    "ID_AA64PFR0_EL1",
    "ID_AA64PFR1_EL1",
    "ID_AA64ZFR0_EL1",
    "ID_AA64SMFR0_EL1",
    "ID_AA64DFR0_EL1",
    "ID_AA64ISAR0_EL1",
    "ID_AA64ISAR1_EL1",
    "ID_AA64ISAR2_EL1",
    "ID_AA64MMFR0_EL1",
    "ID_AA64MMFR1_EL1",
    "ID_AA64MMFR2_EL1",
];

/// All fields, with what they are called.
const FIELDS: [(Field, &str); 15] = [
    (Field::Version, "the hypervisor's version"),
    (Field::State, "the version of the saved state"),
    (Field::Ranges, "the number of ranges of the guest's memory"),
    (Field::RamStart, "the start of the guest's memory, range"),
    (Field::RamEnd, "the end of the guest's memory, range"),
    (Field::Frequency, "the counter's frequency (CNTFRQ_EL0)"),
    (Field::Gic, "the version of the interrupt controller"),
    (Field::Distributor, "the address of the interrupt controller"),
    (Field::Console, "the address of the serial port"),
    (Field::Clock, "the address of the real-time clock"),
    (Field::Manager, "the CPU kept back for management"),
    (Field::Devices, "the number of devices behind the hypervisor"),
    (Field::Device, "the address of the device behind the hypervisor, number"),
    (Field::Cpus, "the number of CPUs"),
    (Field::Cpu, "of CPU"),
];

/// Something about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// A [`Field`]'s number, in a file any number.
    field: u16,
    /// For [`Field::Cpu`]: which of [`CPU_REGISTERS`].
    register: u16,
    /// Which of several: CPU, range or device.
    pub index: u32,
    /// What it is.
    pub value: u64,
}

impl Fact {
    /// A fact of which there is one.
    #[must_use]
    pub const fn new(field: Field, value: u64) -> Self {
        Self::numbered(field, 0, value)
    }

    /// A fact of which there are several.
    #[must_use]
    pub const fn numbered(field: Field, index: u32, value: u64) -> Self {
        Self { field: field as u16, register: 0, index, value }
    }

    /// The register with this place in [`CPU_REGISTERS`] of a CPU.
    #[must_use]
    pub const fn of_cpu(cpu: u32, register: u16, value: u64) -> Self {
        Self { field: Field::Cpu as u16, register, index: cpu, value }
    }

    /// Whether it is about this.
    #[must_use]
    pub const fn is(&self, field: Field) -> bool {
        self.field == field as u16
    }

    /// As it stands in a payload.
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        [self.field as u64 | (self.register as u64) << 16 | (self.index as u64) << 32, self.value]
    }

    const fn of([key, value]: [u64; 2]) -> Self {
        Self { field: key as u16, register: (key >> 16) as u16, index: (key >> 32) as u32, value }
    }

    fn field(&self) -> Option<(Field, &'static str)> {
        FIELDS.iter().copied().find(|(field, _)| self.is(*field))
    }
}

/// The facts in a payload of `bytes` bytes, or in one of its blocks.
pub fn facts(words: &[u64], bytes: u64) -> impl Iterator<Item = Fact> + '_ {
    words.as_chunks().0.iter().take((bytes / 16) as usize).map(|&words| Fact::of(words))
}

/// A version as it stands in a fact: the first eight bytes of its text.
#[must_use]
pub fn version_word(version: &str) -> u64 {
    version.bytes().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(byte))
}

/// A fact that is not the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In the file.
    pub saved: Option<Fact>,
    /// On this machine.
    pub here: Option<Fact>,
}

/// The first fact that is not the same.
pub fn first_difference(
    saved: impl IntoIterator<Item = Fact>,
    here: impl IntoIterator<Item = Fact>,
) -> Option<Difference> {
    let (mut saved, mut here) = (saved.into_iter(), here.into_iter());
    loop {
        match (saved.next(), here.next()) {
            (None, None) => return None,
            (saved, here) if saved == here => {}
            (saved, here) => return Some(Difference { saved, here }),
        }
    }
}

/// What a fact is about.
struct Name(Fact);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Fact { register, index, .. }) = self;
        match self.0.field() {
            Some((Field::Cpu, name)) => {
                write!(f, "{} {name} {index}", CPU_REGISTERS.get(*register as usize).unwrap_or(&"a register"))
            }
            Some((Field::RamStart | Field::RamEnd | Field::Device, name)) => write!(f, "{name} {index}"),
            Some((_, name)) => f.write_str(name),
            None => f.write_str("something that this version does not know"),
        }
    }
}

/// What a fact says.
struct Value(Fact);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0.value;
        match self.0.field().map(|(field, _)| field) {
            Some(Field::Version) => {
                let bytes = value.to_le_bytes();
                let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
                f.write_str(text.trim_end_matches('\0'))
            }
            Some(Field::State | Field::Ranges | Field::Frequency | Field::Gic | Field::Devices | Field::Cpus) => {
                write!(f, "{value}")
            }
            _ => write!(f, "{value:#x}"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.saved, self.here) {
            (Some(saved), Some(here)) if saved.words()[0] == here.words()[0] => {
                let name = Name(saved);
                write!(f, "{name} was {} where it was saved, and is {} here", Value(saved), Value(here))
            }
            (Some(saved), _) => write!(f, "{} was {} where it was saved, and is not here", Name(saved), Value(saved)),
            (None, Some(here)) => write!(f, "{} is {} here, and was not where it was saved", Name(here), Value(here)),
            (None, None) => Ok(()),
        }
    }
}
