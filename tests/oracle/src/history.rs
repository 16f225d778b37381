//! The recent events, so that a violation can tell how it came about.

use crate::event::{Action, Event};
use core::ops::Range;
use stage2::{PhysAddr, Slot};

/// Events that are remembered; a power of two.
const KEPT: usize = 8192;
/// Events that a violation shows.
const SHOWN: usize = 40;

/// An event, and the addresses that it is about where the model knows them.
#[derive(Clone, Debug)]
struct Entry {
    event: Event,
    range: Option<Range<u64>>,
}

/// A ring of the last events, and all of them where asked for.
#[derive(Debug)]
pub(crate) struct History {
    ring: Vec<Entry>,
    number: u64,
    recording: Option<Vec<Event>>,
}

impl History {
    pub fn new(record: bool) -> Self {
        Self { ring: Vec::with_capacity(KEPT), number: 0, recording: record.then(Vec::new) }
    }

    /// The number of the last event.
    pub fn now(&self) -> u64 {
        self.number
    }

    /// Notes an event about `range` (`None`: about no address, or about all).
    pub fn push(&mut self, pe: u8, action: Action, range: Option<Range<u64>>) {
        self.number += 1;
        let event = Event { number: self.number, pe, action };
        if let Some(recording) = &mut self.recording {
            recording.push(event);
        }
        let entry = Entry { event, range };
        let place = (self.number - 1) as usize % KEPT;
        if place < self.ring.len() {
            self.ring[place] = entry;
        } else {
            self.ring.push(entry);
        }
    }

    /// The last event.
    pub fn last(&self) -> Event {
        match self.number {
            0 => Event { number: 0, pe: 0, action: Action::Isb },
            n => self.ring[(n - 1) as usize % KEPT].event,
        }
    }

    /// All events, where recording was asked for.
    pub fn recording(&self) -> &[Event] {
        self.recording.as_deref().unwrap_or(&[])
    }

    /// The last events that have to do with `range`, or with the frame `frame`, oldest first.
    pub fn of(&self, range: &Range<u64>, frame: Option<PhysAddr>) -> Vec<Event> {
        let on_frame = |slot: Slot| frame == Some(slot.table);
        let concerns = |entry: &Entry| match entry.event.action {
            Action::Load { .. } => false,
            Action::Store { slot, .. } | Action::CompareExchange { slot, .. } if on_frame(slot) => true,
            Action::Fill { table, .. } if frame == Some(table) => true,
            Action::Allocate { first, .. } | Action::Free { first, .. } => frame == Some(first),
            Action::Store { .. } | Action::CompareExchange { .. } | Action::Fill { .. } => {
                entry.range.as_ref().is_some_and(|r| r.start < range.end && range.start < r.end)
            }
            _ => entry.range.as_ref().is_none_or(|r| r.start < range.end && range.start < r.end),
        };
        let newest_first = (0..self.ring.len()).map(|back| {
            let number = self.number - 1 - back as u64;
            &self.ring[number as usize % KEPT]
        });
        let mut events: Vec<_> = newest_first.filter(|entry| concerns(entry)).map(|e| e.event).take(SHOWN).collect();
        events.reverse();
        events
    }
}
