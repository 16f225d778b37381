//! Several engine threads on one host thread, with a choice before every event.
//!
//! Each thread of a run is a coroutine on a PE of its own. Before each event it hands control back, and a [`Chooser`] says
//! which one goes on: at random from a seed, or by trying every interleaving with a bounded number of preemptions.

use crate::model::Model;
use crate::turn::{self, Step};
use core::cell::Cell;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

/// Events in one run before it counts as a livelock.
const MOST_STEPS: usize = 2_000_000;
/// Bytes of stack for a thread.
const STACK: usize = 512 << 10;

type Thread = Coroutine<(), Step, (), DefaultStack>;

thread_local! {
    /// Stacks of finished threads.
    static STACKS: Cell<Vec<DefaultStack>> = const { Cell::new(Vec::new()) };
}

/// Says which thread goes on.
pub trait Chooser {
    /// One of `ready`, which is not empty; `last` is the thread that ran last, if it is ready.
    fn choose(&mut self, last: Option<usize>, ready: &[usize]) -> usize;
}

/// Chooses at random: stays with a thread for a while, then switches.
#[derive(Debug)]
pub struct Random {
    chance: fastrand::Rng,
    /// Chance of a switch, in 256ths: drawn anew for each run, so that some are fine-grained and some coarse.
    rate: u8,
}

impl Random {
    /// The choices of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let rate = *chance.choice(&[8, 32, 96, 192]).unwrap_or(&32);
        Self { chance, rate }
    }
}

impl Chooser for Random {
    fn choose(&mut self, last: Option<usize>, ready: &[usize]) -> usize {
        match last {
            Some(last) if self.chance.u8(..) >= self.rate => last,
            _ => ready[self.chance.usize(..ready.len())],
        }
    }
}

/// Tries all interleavings with at most so many preemptions, one a run.
#[derive(Debug)]
struct Exhaustive {
    /// What was chosen, out of how many, in this run and those before it.
    path: Vec<(usize, usize)>,
    position: usize,
    preemptions: usize,
    bound: usize,
}

impl Chooser for Exhaustive {
    fn choose(&mut self, last: Option<usize>, ready: &[usize]) -> usize {
        // The first option is to go on; a thread that can't go on is left without that being a preemption.
        let mut options: Vec<usize> =
            last.into_iter().chain(ready.iter().copied().filter(|&t| Some(t) != last)).collect();
        if last.is_some() && self.preemptions == self.bound {
            options.truncate(1);
        }
        if self.position == self.path.len() {
            self.path.push((0, options.len()));
        }
        let (choice, known) = self.path[self.position];
        assert_eq!(known, options.len(), "a run is not the same when it is repeated");
        self.position += 1;
        self.preemptions += usize::from(last.is_some() && choice != 0);
        options[choice]
    }
}

impl Exhaustive {
    /// Goes to the next untried choice. Whether there is one.
    fn advance(&mut self) -> bool {
        while let Some((choice, options)) = self.path.pop() {
            if choice + 1 < options {
                self.path.push((choice + 1, options));
                (self.position, self.preemptions) = (0, 0);
                return true;
            }
        }
        false
    }
}

/// Calls `test` once for each interleaving with at most `preemptions` preemptions, but not more than `most` times.
/// Returns how many there were, and whether that was all.
pub fn explore(preemptions: usize, most: usize, mut test: impl FnMut(&mut dyn Chooser)) -> (usize, bool) {
    let mut chooser = Exhaustive { path: Vec::new(), position: 0, preemptions: 0, bound: preemptions };
    for run in 1..=most {
        test(&mut chooser);
        if !chooser.advance() {
            return (run, true);
        }
    }
    (most, false)
}

/// The body of a thread, and the PE that it runs on.
pub type Body<'a> = (u8, Box<dyn FnOnce() + 'a>);

/// Runs the threads to their ends, in the order that `chooser` says.
///
/// # Panics
///
/// If a thread panics; if all threads wait for each other; if they run for ever.
pub fn run(model: &Model, bodies: Vec<Body<'_>>, chooser: &mut dyn Chooser) {
    struct Task {
        thread: Option<Thread>,
        pe: u8,
        /// What it does when it goes on.
        next: Step,
        /// How much had changed when it began to wait.
        waits_since: u64,
    }
    let mut tasks: Vec<Task> = bodies
        .into_iter()
        .map(|(pe, body)| Task { thread: Some(spawn(body)), pe, next: Step::Look, waits_since: 0 })
        .collect();
    // Dropped before `tasks`: after a panic, what unfinished threads do while they unwind is no event of the run.
    let _reset = ResetCurrent;
    let (mut changes, mut last) = (0, None);
    for _ in 0..MOST_STEPS {
        let ready: Vec<usize> = (0..tasks.len())
            .filter(|&t| tasks[t].thread.is_some() && (tasks[t].next != Step::Wait || tasks[t].waits_since < changes))
            .collect();
        if ready.is_empty() {
            assert!(tasks.iter().all(|task| task.thread.is_none()), "deadlock: all threads wait for each other");
            return;
        }
        let chosen = chooser.choose(last.filter(|last| ready.contains(last)), &ready);
        let task = &mut tasks[chosen];
        let Some(thread) = &mut task.thread else { continue };
        changes += u64::from(task.next == Step::Act);
        model.set_pe(task.pe);
        let result = thread.resume(());
        turn::leave();
        match result {
            CoroutineResult::Yield(step) => {
                task.next = step;
                task.waits_since = changes;
            }
            CoroutineResult::Return(()) => {
                changes += 1;
                if let Some(thread) = task.thread.take() {
                    give_back(thread.into_stack());
                }
            }
        }
        last = Some(chosen);
    }
    panic!("livelock: {MOST_STEPS} events, and the threads have not finished");
}

struct ResetCurrent;

impl Drop for ResetCurrent {
    fn drop(&mut self) {
        turn::leave();
    }
}

fn spawn<'a>(body: Box<dyn FnOnce() + 'a>) -> Thread {
    let mut stacks = STACKS.take();
    let stack = stacks.pop().unwrap_or_else(|| DefaultStack::new(STACK).expect("memory for a thread's stack"));
    STACKS.set(stacks);
    let body = move |yielder: &Yielder<(), Step>, ()| {
        // SAFETY: the yielder lives on the stack of this coroutine, and `run` calls `leave` whenever it has been resumed.
        unsafe { turn::enter(yielder) };
        body();
    };
    // SAFETY: `run` drops all threads before it returns, so before the end of what `body` borrows.
    unsafe { Coroutine::with_stack_unchecked(stack, body) }
}

fn give_back(stack: DefaultStack) {
    let mut stacks = STACKS.take();
    stacks.push(stack);
    STACKS.set(stacks);
}
