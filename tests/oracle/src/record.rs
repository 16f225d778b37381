//! Events as 32 bytes each: what a machine's event log holds.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 | kind of the event, 1 to 18 (17 and 18 are what a guest does, which no machine logs) |
//! | 1 | PE |
//! | 2-3 | VMID |
//! | 4-7 | small operands, see [`encode`] |
//! | 8-15, 16-23, 24-31 | three 64-bit operands |
//!
//! All little-endian. The order of the records is the order of the events: a logger takes a number from one shared counter
//! with each event and sorts by it. Failed compare-exchanges and loads need not be logged.

use crate::event::{Access, Action, Event, Form, Invalidation, Operation, OperationKind};
use core::fmt;
use stage2::{Dsb, Ipa, IpaRange, Level, PhysAddr, Scope, Slot};

/// Bytes in a record.
pub const RECORD: usize = 32;

/// A record that stands for no event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRecord {
    /// Its place in the log, from 0.
    pub index: usize,
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of the event log (byte {:#x} on) stands for no event", self.index, self.index * RECORD)
    }
}

impl core::error::Error for BadRecord {}

/// The operands of one record, before they are packed.
#[derive(Clone, Copy, Default)]
struct Raw {
    kind: u8,
    pe: u8,
    vmid: u16,
    small: [u8; 4],
    words: [u64; 3],
}

/// The event's record.
///
/// The small operands are, by kind: a slot's index (bytes 4-5); the barrier (0 ISHST, 1 ISH, 2 NSH); for a TLBI its form,
/// scope (1 broadcast), hint (0 none, else the level + 1) and last-level flag; for a range TLBI log2 of what BaseADDR counts in
/// granules, log2 of the granule in 4 KiB, SCALE and NUM are in the second word; frames; bits of IPA; the kind of an operation, and whether it has a range; whether a guest's page has an IPA;
/// how a guest accesses memory.
#[must_use]
pub fn encode(event: &Event) -> [u8; RECORD] {
    let mut raw = Raw { pe: event.pe, ..Raw::default() };
    match event.action {
        Action::Load { slot, value } => raw.of_slot(1, slot, [value, 0]),
        Action::Store { slot, value } => raw.of_slot(2, slot, [value, 0]),
        // Two kinds, so that three words do: one that worked, one that failed.
        Action::CompareExchange { slot, old, new, found } if found == old => raw.of_slot(3, slot, [old, new]),
        Action::CompareExchange { slot, old, found, .. } => raw.of_slot(4, slot, [old, found]),
        Action::Fill { table, first, step } => {
            raw.kind = 5;
            raw.words = [table.0, first, step];
        }
        Action::HardwareUpdate { slot, value } => raw.of_slot(6, slot, [value, 0]),
        Action::Dsb(barrier) => {
            raw.kind = 7;
            raw.small[0] = match barrier {
                Dsb::IshSt => 0,
                Dsb::Ish => 1,
                Dsb::Nsh => 2,
            };
        }
        Action::Isb => raw.kind = 8,
        Action::Tlbi(invalidation) => encode_tlbi(&mut raw, &invalidation),
        Action::Allocate { first, frames } => {
            raw.kind = 10;
            raw.small[0] = frames as u8;
            raw.words[0] = first.0;
        }
        Action::Free { first, frames } => {
            raw.kind = 11;
            raw.small[0] = frames as u8;
            raw.words[0] = first.0;
        }
        Action::Attach { vmid, ipa_bits, root } => {
            (raw.kind, raw.vmid, raw.small[0]) = (12, vmid, ipa_bits);
            raw.words[0] = root.0;
        }
        Action::Detach { vmid } => (raw.kind, raw.vmid) = (13, vmid),
        Action::Begin(Operation { kind, range }) => {
            raw.kind = 14;
            raw.small = [kind as u8, u8::from(range.is_some()), 0, 0];
            if let Some(range) = range {
                raw.words = [range.start().0, range.end().0, 0];
            }
        }
        Action::Pages { start, end } => {
            raw.kind = 15;
            raw.words = [start, end, 0];
        }
        Action::Return { ok } => {
            raw.kind = 16;
            raw.small[0] = u8::from(ok);
        }
        Action::GuestMaps { vmid, va, ipa } => {
            (raw.kind, raw.vmid, raw.small[0]) = (17, vmid, u8::from(ipa.is_some()));
            raw.words = [va, ipa.unwrap_or(0), 0];
        }
        Action::Access { vmid, va, access } => {
            (raw.kind, raw.vmid, raw.small[0]) = (18, vmid, access as u8);
            raw.words[0] = va;
        }
    }
    raw.pack()
}

fn encode_tlbi(raw: &mut Raw, invalidation: &Invalidation) {
    let Invalidation { vmid, form, scope, hint, last_level } = *invalidation;
    let (code, first, second) = match form {
        Form::Ipa(ipa) => (0, ipa, 0),
        Form::Range { base, scale, num, granule, unit } => (
            1,
            base,
            u64::from(unit - granule) << 24 | u64::from(granule - 12) << 16 | u64::from(scale) << 8 | u64::from(num),
        ),
        Form::Va(va) => (2, va, 0),
        Form::VmallE1 => (3, 0, 0),
        Form::VmallS12E1 => (4, 0, 0),
        Form::OtherRegime => (5, 0, 0),
    };
    let hint = hint.map_or(0, |level| level as u8 + 1);
    (raw.kind, raw.vmid) = (9, vmid);
    raw.small = [code, u8::from(scope == Scope::Broadcast), hint, u8::from(last_level)];
    raw.words = [first, second, 0];
}

/// The events of a log, numbered by their order.
///
/// # Errors
///
/// The first record that stands for no event, a cut-off one at the end included.
pub fn decode(log: &[u8]) -> Result<Vec<Event>, BadRecord> {
    let records = log.chunks(RECORD).enumerate();
    records
        .map(|(index, record)| {
            let raw = record.try_into().map(Raw::unpack).map_err(|_| BadRecord { index })?;
            let action = raw.action().ok_or(BadRecord { index })?;
            Ok(Event { number: index as u64 + 1, pe: raw.pe, action })
        })
        .collect()
}

impl Raw {
    /// The record is about the descriptor in `slot`.
    fn of_slot(&mut self, kind: u8, slot: Slot, [first, second]: [u64; 2]) {
        self.kind = kind;
        self.small[..2].copy_from_slice(&(slot.index as u16).to_le_bytes());
        self.words = [slot.table.0, first, second];
    }

    fn pack(self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        (record[0], record[1]) = (self.kind, self.pe);
        record[2..4].copy_from_slice(&self.vmid.to_le_bytes());
        record[4..8].copy_from_slice(&self.small);
        for (place, word) in record[8..].chunks_exact_mut(8).zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        record
    }

    fn unpack(record: [u8; RECORD]) -> Self {
        let word = |n: usize| core::array::from_fn(|i| record[8 + 8 * n + i]);
        Self {
            kind: record[0],
            pe: record[1],
            vmid: u16::from_le_bytes([record[2], record[3]]),
            small: core::array::from_fn(|i| record[4 + i]),
            words: core::array::from_fn(|n| u64::from_le_bytes(word(n))),
        }
    }

    fn action(&self) -> Option<Action> {
        let [first, second, third] = self.words;
        let index = usize::from(u16::from_le_bytes([self.small[0], self.small[1]]));
        let slot = (index < 8192).then_some(Slot { table: PhysAddr(first), index });
        let frames = usize::from(self.small[0]);
        let vmid = self.vmid;
        Some(match self.kind {
            1 => Action::Load { slot: slot?, value: second },
            2 => Action::Store { slot: slot?, value: second },
            3 => Action::CompareExchange { slot: slot?, old: second, new: third, found: second },
            4 if second != third => Action::CompareExchange { slot: slot?, old: second, new: 0, found: third },
            5 => Action::Fill { table: PhysAddr(first), first: second, step: third },
            6 => Action::HardwareUpdate { slot: slot?, value: second },
            7 => Action::Dsb(*[Dsb::IshSt, Dsb::Ish, Dsb::Nsh].get(frames)?),
            8 => Action::Isb,
            9 => Action::Tlbi(self.invalidation()?),
            10 if (1..=16).contains(&frames) => Action::Allocate { first: PhysAddr(first), frames },
            11 if (1..=16).contains(&frames) => Action::Free { first: PhysAddr(first), frames },
            12 if (32..=48).contains(&self.small[0]) => {
                Action::Attach { vmid, ipa_bits: self.small[0], root: PhysAddr(first) }
            }
            13 => Action::Detach { vmid },
            14 => {
                let kind = *OperationKind::ALL.iter().find(|&&kind| kind as u8 == self.small[0])?;
                let range = match self.small[1] {
                    0 => None,
                    _ => Some(IpaRange::new(Ipa(first), Ipa(second)).ok()?),
                };
                Action::Begin(Operation { kind, range })
            }
            15 if first < second => Action::Pages { start: first, end: second },
            16 => Action::Return { ok: self.small[0] != 0 },
            17 => Action::GuestMaps { vmid, va: first, ipa: (self.small[0] != 0).then_some(second) },
            18 => Action::Access { vmid, va: first, access: *Access::ALL.get(frames)? },
            _ => return None,
        })
    }

    fn invalidation(&self) -> Option<Invalidation> {
        let [first, second, _] = self.words;
        let form = match self.small[0] {
            0 => Form::Ipa(first),
            1 => {
                let granule = 12 + (second >> 16 & 7) as u8;
                let unit = granule + (second >> 24 & 7) as u8;
                Form::Range { base: first, scale: (second >> 8) as u8, num: second as u8, granule, unit }
            }
            2 => Form::Va(first),
            3 => Form::VmallE1,
            4 => Form::VmallS12E1,
            5 => Form::OtherRegime,
            _ => return None,
        };
        let levels = [None, Some(Level::L0), Some(Level::L1), Some(Level::L2), Some(Level::L3)];
        Some(Invalidation {
            vmid: self.vmid,
            form,
            scope: if self.small[1] != 0 { Scope::Broadcast } else { Scope::Local },
            hint: *levels.get(usize::from(self.small[2]))?,
            last_level: self.small[3] != 0,
        })
    }
}
