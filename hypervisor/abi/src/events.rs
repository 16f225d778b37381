//! The records of the engine's event log, as a hypervisor with the feature `events` writes them and the oracle reads them.
//!
//! The format is the oracle's (`stage2_oracle::record`); the host tool has the test that both agree.

/// Bytes in a record.
pub const RECORD: usize = 32;

/// A barrier, as records number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Barrier {
    /// `DSB ISHST`.
    IshSt = 0,
    /// `DSB ISH`.
    Ish = 1,
    /// `DSB NSH`.
    Nsh = 2,
}

/// A TLB invalidation, as records number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named after the instructions and their operands")]
pub enum Invalidation {
    Ipas2E1 { ipa: u64, broadcast: bool },
    Ripas2E1 { base: u64, scale: u8, num: u8 },
    Vaae1 { va: u64 },
    VmallE1 { broadcast: bool },
    VmallS12E1 { broadcast: bool },
}

/// What the engine is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are named after the engine's functions")]
pub enum Call {
    New = 1,
    Map = 3,
    Protect = 5,
    Split = 6,
    Collapse = 7,
    Fault = 8,
    Start = 10,
    Harvest = 11,
    Clear = 12,
    End = 13,
    Freeze = 14,
    Thaw = 15,
}

/// One event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    kind: u8,
    pe: u8,
    vmid: u16,
    small: [u8; 4],
    words: [u64; 3],
}

impl Record {
    const fn of(kind: u8, small: [u8; 4], words: [u64; 3]) -> Self {
        Self { kind, pe: 0, vmid: 0, small, words }
    }

    const fn slot(kind: u8, table: u64, index: usize, value: [u64; 2]) -> Self {
        let [low, high] = (index as u16).to_le_bytes();
        Self::of(kind, [low, high, 0, 0], [table, value[0], value[1]])
    }

    /// The descriptor `index` of the table at `table` was loaded.
    #[must_use]
    pub const fn load(table: u64, index: usize, value: u64) -> Self {
        Self::slot(1, table, index, [value, 0])
    }

    /// It was stored.
    #[must_use]
    pub const fn store(table: u64, index: usize, value: u64) -> Self {
        Self::slot(2, table, index, [value, 0])
    }

    /// It was `old` and became `new`, atomically.
    #[must_use]
    pub const fn exchange(table: u64, index: usize, old: u64, new: u64) -> Self {
        Self::slot(3, table, index, [old, new])
    }

    /// All 512 descriptors were stored: `first`, `first + step`, and so on.
    #[must_use]
    pub const fn fill(table: u64, first: u64, step: u64) -> Self {
        Self::of(5, [0; 4], [table, first, step])
    }

    /// A barrier.
    #[must_use]
    pub const fn barrier(barrier: Barrier) -> Self {
        Self::of(7, [barrier as u8, 0, 0, 0], [0; 3])
    }

    /// An ISB.
    #[must_use]
    pub const fn isb() -> Self {
        Self::of(8, [0; 4], [0; 3])
    }

    /// A TLBI for `vmid`.
    #[must_use]
    pub const fn tlbi(vmid: u16, invalidation: Invalidation) -> Self {
        let (form, broadcast, first, second) = match invalidation {
            Invalidation::Ipas2E1 { ipa, broadcast } => (0, broadcast, ipa, 0),
            Invalidation::Ripas2E1 { base, scale, num } => (1, true, base, (scale as u64) << 8 | num as u64),
            Invalidation::Vaae1 { va } => (2, false, va, 0),
            Invalidation::VmallE1 { broadcast } => (3, broadcast, 0, 0),
            Invalidation::VmallS12E1 { broadcast } => (4, broadcast, 0, 0),
        };
        let record = Self::of(9, [form, broadcast as u8, 0, 0], [first, second, 0]);
        Self { vmid, ..record }
    }

    /// `frames` frames from `first` on went to the engine.
    #[must_use]
    pub const fn allocate(first: u64, frames: usize) -> Self {
        Self::of(10, [frames as u8, 0, 0, 0], [first, 0, 0])
    }

    /// They came back.
    #[must_use]
    pub const fn free(first: u64, frames: usize) -> Self {
        Self::of(11, [frames as u8, 0, 0, 0], [first, 0, 0])
    }

    /// Walks of `vmid` begin at `root` from now on, with `ipa_bits` bits of IPA.
    #[must_use]
    pub const fn attach(vmid: u16, ipa_bits: u8, root: u64) -> Self {
        let record = Self::of(12, [ipa_bits, 0, 0, 0], [root, 0, 0]);
        Self { vmid, ..record }
    }

    /// The engine is called, for addresses from `start` to `end` or for no particular ones.
    #[must_use]
    pub const fn begin(call: Call, range: Option<(u64, u64)>) -> Self {
        match range {
            Some((start, end)) => Self::of(14, [call as u8, 1, 0, 0], [start, end, 0]),
            None => Self::of(14, [call as u8, 0, 0, 0], [0; 3]),
        }
    }

    /// The call that runs reports these pages dirty.
    #[must_use]
    pub const fn pages(start: u64, end: u64) -> Self {
        Self::of(15, [0; 4], [start, end, 0])
    }

    /// The engine returns, `ok` without an error.
    #[must_use]
    pub const fn end(ok: bool) -> Self {
        Self::of(16, [ok as u8, 0, 0, 0], [0; 3])
    }

    /// The same, done by PE `pe`.
    #[must_use]
    pub const fn by(self, pe: u8) -> Self {
        Self { pe, ..self }
    }

    /// Whether it is a barrier after which the PE's stores are seen by all walks.
    #[must_use]
    pub const fn orders_stores(&self) -> bool {
        self.kind == 7 && self.small[0] != Barrier::Nsh as u8
    }

    /// As it is stored and sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let (head, words) = bytes.split_at_mut(8);
        let [low, high] = self.vmid.to_le_bytes();
        let [a, b, c, d] = self.small;
        head.copy_from_slice(&[self.kind, self.pe, low, high, a, b, c, d]);
        for (place, word) in words.chunks_exact_mut(8).zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}
