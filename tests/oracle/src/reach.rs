//! What a walk can come to: tables that are published, roots that are used no more, frames that come back.

use crate::change::Change;
use crate::memory::{FrameId, Place, Space};
use crate::stage1::Stage1;
use crate::state::State;
use crate::tlb::{Held, Key, MAX_PES, Stale, Tlb};
use crate::translation::is_table;
use crate::verdict::Verdict;
use core::ops::Range;
use stage2::{Level, PhysAddr};

impl State {
    /// What the new descriptor leads to becomes reachable.
    pub fn link(&mut self, change: &Change) {
        if !is_table(change.place.level, change.new) {
            return;
        }
        let address = change.place.shape.address(change.new);
        let child = self.memory.find(address).filter(|&id| self.memory.frame(id).allocated);
        let (Some(child), Some(place)) = (child, change.place.child(change.index)) else {
            let what = format!("a table descriptor leads to {:#x}, no allocated frame", address.0);
            return self.report(Verdict::Freed, change.span.range(), Some(address), what);
        };
        self.publish(child, Some((change.frame, change.index as u16)), place);
        self.note_published_busy(change.pe, child);
    }

    /// Makes a table reachable, and the tables below it.
    fn publish(&mut self, id: FrameId, parent: Option<(FrameId, u16)>, place: Place) {
        let frame = self.memory.frame(id);
        let (address, written, unordered) = (frame.address, frame.is_written(), frame.unordered);
        if !self.memory.is_reachable(id) && (!written || unordered != 0) {
            let what = match written {
                false => format!("the table {:#x} is reachable, but not all of its entries are written", address.0),
                true => format!("the table {:#x} is reachable, but no DSB has ordered its entries", address.0),
            };
            self.report(Verdict::Unfilled, place.span().range(), Some(address), what);
        }
        self.memory.attach(id, parent, place);
        if place.level == Level::L3 {
            return;
        }
        for index in 0..place.shape.entries() {
            let value = self.memory.frame(id).values[index];
            if !is_table(place.level, value) {
                continue;
            }
            if let (Some(child), Some(below)) = (self.memory.find(place.shape.address(value)), place.child(index)) {
                let parent = Some((id, index as u16));
                let known = self.memory.frame(child);
                if known.allocated && (known.parent != parent || known.place != Some(below)) {
                    self.publish(child, parent, below);
                }
            }
        }
    }

    /// The walks of `vmid` start at `root` from now on. Returns the number of the address space.
    pub fn attach(&mut self, vmid: u16, ipa_bits: u8, (start_level, tables): (Level, usize), root: PhysAddr) {
        let shape = self.setup.granule;
        let known = self.spaces.iter().position(|space| space.vmid == vmid);
        let number = known.unwrap_or(self.spaces.len());
        if known.is_some() {
            // Until an invalidation, everything of the old table may be held (mistake: a VMID given away too early).
            self.abandon(number);
            self.judge_reused_vmid(number);
        } else {
            self.tlbs.push(Tlb::default());
            self.stage1.push(Stage1::default());
            self.spaces.push(Space { vmid, ipa_bits, start_level, shape, roots: Vec::new() });
        }
        let roots: Vec<_> =
            (0..tables).filter_map(|n| self.memory.find(root.offset(n as u64 * shape.bytes()))).collect();
        self.spaces[number] = Space { vmid, ipa_bits, start_level, shape, roots: roots.clone() };
        for (n, id) in roots.into_iter().enumerate() {
            let place = self.spaces[number].root_place(number, n);
            self.publish(id, None, place);
        }
    }

    /// The root is used no more: what it led to may still be held.
    pub fn abandon(&mut self, number: usize) {
        for id in core::mem::take(&mut self.spaces[number].roots) {
            self.memory.unroot(id);
            let Some(place) = self.memory.frame(id).place else { continue };
            let stale = Stale {
                held: Held::Table(id),
                span: place.span(),
                tlb: self.all_pes(),
                combined: self.all_pes(),
                gone_at: [0; MAX_PES],
                visible: 0,
                hidden_at: self.history.now(),
                operation: 0,
                replaced_at: self.history.now(),
            };
            self.hold(number, stale);
        }
    }

    /// Frames come back: nothing may lead there.
    pub fn free(&mut self, first: PhysAddr, frames: usize) {
        let group = self.memory.find(first).map_or(0, |id| self.memory.frame(id).group);
        let shape = self.setup.granule;
        for n in 0..frames.div_ceil(shape.frames()) {
            let address = first.offset(n as u64 * shape.bytes());
            let id = self.memory.find(address).filter(|&id| self.memory.frame(id).allocated);
            let Some(id) = id.filter(|_| group == frames) else {
                let what = format!("{:#x} is given back, but was not allocated as {frames} frame(s)", address.0);
                return self.report(Verdict::Contract, 0..1 << 52, Some(first), what);
            };
            let place = self.memory.frame(id).place;
            let range = place.map_or(0..1 << 52, |place| place.span().range());
            if self.memory.is_linked(id) {
                let what = format!("the frame {:#x} is given back while a table descriptor leads to it", address.0);
                self.report(Verdict::Freed, range.clone(), Some(address), what);
            } else if self.memory.is_reachable(id) {
                let what = format!("the frame {:#x} is given back while a walk cache may lead to it", address.0);
                self.report(Verdict::Freed, range.clone(), Some(address), what);
            }
            self.settle_ghosts(id);
            self.forget_ways(id, &range);
            self.memory.release(id, frames == shape.frames());
        }
    }

    /// After a frame was freed (too early), what led there leads to nothing that the model knows.
    fn forget_ways(&mut self, id: FrameId, range: &Range<u64>) {
        if self.memory.frame(id).walkers == 0 {
            return;
        }
        for tlb in &mut self.tlbs {
            let ways: Vec<Key> =
                tlb.overlapping(range).filter(|(_, s)| s.held == Held::Table(id)).map(|(key, _)| key).collect();
            ways.into_iter().for_each(|key| tlb.remove(key));
        }
        self.memory.frame_mut(id).walkers = 0;
    }
}
