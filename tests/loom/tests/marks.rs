//! The marks of a log: set beside a harvest that takes them, with the orders that `dirty_bitmap.rs` asks for, and with less.

use loom::sync::Arc;
use loom::thread;
use stage2_loom::marked::{BLOCK, Marked};
use stage2_loom::sync::{Ordering, Weakness, begin};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Writers beside a harvest.
#[derive(Clone)]
struct Scene {
    pages: usize,
    /// Each is opened and marked by a thread of its own.
    writes: Vec<usize>,
    /// Open and marked before.
    dirty: BTreeSet<usize>,
    /// What the harvesting thread itself writes before it harvests.
    own: Option<usize>,
    preemptions: usize,
}

/// A block whose marks have one summary above them, or two: not the first that its summary names.
fn block(summaries: usize) -> usize {
    if summaries == 1 { 2 * BLOCK } else { 65 * BLOCK }
}

impl Scene {
    fn new(summaries: usize, writes: &[usize], dirty: impl IntoIterator<Item = usize>) -> Self {
        let pages = block(summaries) + BLOCK;
        Self { pages, writes: writes.to_vec(), dirty: dirty.into_iter().collect(), own: None, preemptions: 3 }
    }

    /// Every interleaving, with plain stores that are seen in their turn, and with such as come late.
    fn check(&self) {
        [false, true].into_iter().for_each(|late| self.check_with(None, late));
    }

    /// The same with a weakness.
    fn is_noticed(&self, weakness: Weakness) -> bool {
        [false, true]
            .into_iter()
            .any(|late| catch_unwind(AssertUnwindSafe(|| self.check_with(Some(weakness), late))).is_err())
    }

    fn check_with(&self, weakness: Option<Weakness>, late: bool) {
        let scene = self.clone();
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(self.preemptions);
        model.max_branches = 100_000;
        model.check(move || {
            begin(weakness, late);
            scene.run();
        });
    }

    fn run(&self) {
        let written: Vec<usize> = self.writes.iter().copied().chain(self.own).collect();
        let marked = Arc::new(Marked::new(self.pages, &written, self.dirty.iter().copied()));
        let writer = |&page| {
            let theirs = Arc::clone(&marked);
            thread::spawn(move || theirs.write(page))
        };
        let writers: Vec<_> = self.writes.iter().map(writer).collect();
        if let Some(page) = self.own {
            marked.write(page);
        }
        let first = marked.harvest();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let open: Vec<usize> = written.iter().copied().filter(|&page| marked.is_open(page)).collect();
        let second = marked.harvest();

        for page in self.dirty.iter().chain(&written) {
            assert!(first.contains(page) || second.contains(page), "the mark of page {page} is lost");
        }
        for page in self.dirty.iter().chain(&self.own) {
            assert!(first.contains(page), "page {page} was marked before the harvest began");
        }
        for page in open {
            assert!(second.contains(&page), "page {page} is open, and not in the next report");
        }
        assert!(!written.iter().any(|&page| marked.is_open(page)));
    }
}

/// One page is written, and dirty is another: in its word, its block, one that the same summary names, or one that it does
/// not; or none, or the page itself.
fn beside_one(summaries: usize) -> Vec<Scene> {
    let page = block(summaries) + 5;
    let dirty = [Some(page + 1), Some(page + 64), Some(page - BLOCK), Some(page - 2 * BLOCK), None, Some(page)];
    dirty.map(|dirty| Scene::new(summaries, &[page], dirty)).to_vec()
}

/// All pages of a block are dirty, one of which is written again; or all but that one.
fn beside_a_full_block(summaries: usize) -> Vec<Scene> {
    let all = block(summaries)..block(summaries) + BLOCK;
    let page = all.start + 77;
    let others = all.clone().filter(|&other| other != page);
    vec![Scene::new(summaries, &[page], all.clone()), Scene::new(summaries, &[page], others)]
}

/// Two write: one page, one word, one block, two blocks.
fn two_writers() -> Vec<Scene> {
    let pairs = [[5, 5], [5, 6], [5, 70], [5, BLOCK + 5]];
    pairs.map(|writes| Scene { preemptions: 2, ..Scene::new(1, &writes, []) }).to_vec()
}

/// The harvesting thread itself has written beside another.
fn one_of_its_own(summaries: usize) -> Vec<Scene> {
    let page = block(summaries) + 5;
    let own = [page + 1, page + 64, page - BLOCK];
    own.map(|own| Scene { own: Some(own), ..Scene::new(summaries, &[page], []) }).to_vec()
}

#[test]
fn a_mark_set_beside_a_harvest_is_in_its_report_or_the_next() {
    [1, 2].into_iter().flat_map(beside_one).for_each(|scene| scene.check());
}

#[test]
fn a_mark_set_anew_in_a_full_block_is_in_its_report_or_the_next() {
    [1, 2].into_iter().flat_map(beside_a_full_block).for_each(|scene| scene.check());
}

#[test]
fn two_marks_set_beside_a_harvest_are_in_its_report_or_the_next() {
    two_writers().iter().for_each(Scene::check);
}

/// Another may have set the word's first bit, and not come to the summary yet.
#[test]
fn a_harvest_finds_what_was_marked_before_it_beside_a_mark_under_way() {
    [1, 2].into_iter().flat_map(one_of_its_own).for_each(|scene| scene.check());
}

#[test]
fn each_order_that_loom_can_tell_is_needed() {
    let one = || [1, 2].into_iter().flat_map(beside_one).chain(two_writers());
    let full = || beside_a_full_block(1).into_iter();
    let noticed = |weakness, mut scenes: Box<dyn Iterator<Item = Scene>>| {
        assert!(scenes.any(|scene| scene.is_noticed(weakness)), "{weakness:?}");
    };
    noticed(Weakness::NoFence, Box::new(one()));
    noticed(Weakness::RelaxedSet, Box::new(one()));
    noticed(Weakness::RelaxedLoad, Box::new(one()));
    noticed(Weakness::MarksFirst, Box::new(one()));
    noticed(Weakness::MarksFirst, Box::new(full()));
    noticed(Weakness::ProtectsFirst, Box::new(one()));
    noticed(Weakness::ProtectsFirst, Box::new(full()));
}

/// Loom has read-modify-writes come to memory in their turn, and each finds the last: it can't tell whether those that
/// follow one another have to. (With plain stores to a full block in place of swaps, which would be enough, it notices
/// descriptors' read-modify-writes without release.)
#[test]
fn some_orders_are_beyond_loom() {
    for scene in beside_one(1).into_iter().chain(beside_a_full_block(1)).chain(two_writers()) {
        assert!(!scene.is_noticed(Weakness::RelaxedSwap));
        for order in [Ordering::Relaxed, Ordering::Acquire, Ordering::Release] {
            assert!(!scene.is_noticed(Weakness::Descriptor(order)), "{order:?}");
        }
    }
}
