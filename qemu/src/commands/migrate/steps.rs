//! The steps of a move.
//!
//! The order is what keeps a guest from running twice, or nowhere: the destination has everything, and has found it equal; the
//! file is whole under its name; the source's process has ended; then the destination starts. What fails before the source is
//! let go leaves the guest where it was; what fails after that leaves it in the file.

use super::side::Side;
use crate::cli::Migrate;
use crate::commands::command::Watch;
use crate::manager::link::{Gone, Link};
use crate::manager::session::{Sent, load, send};
use crate::manager::show::Show;
use crate::saved::{Draft, Guest, Machine};
use anyhow::{Context, Error, Result, bail, ensure};
use hypervisor_abi::manager::{Mechanism, Reply, Request, Share, VERSION};
use hypervisor_abi::saved::BLOCK_BYTES;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What fails on purpose, and before which step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fail {
    what: What,
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Source,
    Destination,
    File,
    Full,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    All,
    Round,
    Stop,
    Load,
    Release,
    Go,
}

impl FromStr for Fail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, at) = text.split_once('@').unwrap_or((text, ""));
        let what = match what {
            "source" => Some(What::Source),
            "destination" => Some(What::Destination),
            "file" => Some(What::File),
            "full" => Some(What::Full),
            _ => None,
        };
        let at = match at {
            "all" => Some(At::All),
            "round" => Some(At::Round),
            "stop" => Some(At::Stop),
            "load" => Some(At::Load),
            "release" => Some(At::Release),
            "go" => Some(At::Go),
            _ => None,
        };
        let form = "write source, destination, file or full, then @ and all, round, stop, load, release or go";
        what.zip(at).map(|(what, at)| Self { what, at }).ok_or_else(|| form.into())
    }
}

impl Fail {
    /// Whether the file is to have too little room.
    pub fn fills_the_file(self) -> bool {
        self.what == What::Full
    }
}

/// A round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Pages that were sent.
    pub pages: u64,
    /// Pages that were named only.
    pub zero_pages: u64,
    /// How long it took.
    pub seconds: f64,
    /// Pages that are dirty again.
    pub left: Option<u64>,
}

/// What it took while the guest stood still.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// Pages that were sent meanwhile.
    pub pages: u64,
    /// Ticks of the source's counter.
    pub ticks: u64,
    /// Of these, for the hash.
    pub hash_ticks: u64,
    /// Ticks in a second.
    pub frequency: u64,
    /// Of all memory, on both sides.
    pub hash: u64,
    /// From the stop to where the guest went on, by the host's clock.
    pub stood_still: Duration,
}

/// What has become of a move.
pub struct Outcome {
    /// The rounds.
    pub rounds: Vec<Round>,
    /// Whether the guest is on the other side; if not, why, and the file that it is in if it is there only.
    pub result: Result<Moved, (Error, Option<PathBuf>)>,
}

/// A move that is to be.
pub struct Move<'m, 'w> {
    /// What is wanted.
    pub options: &'m Migrate,
    /// What is to fail.
    pub fail: Option<Fail>,
    /// Source and destination.
    pub sides: &'m [Side; 2],
    /// The console of both.
    pub watch: &'m Mutex<Watch<'w>>,
    /// More of a console was read.
    pub read: &'m Condvar,
    /// Where news go.
    pub show: &'m Show,
    /// What this tool writes down of the machine.
    pub known: Machine,
}

impl<'w> Move<'_, 'w> {
    /// Does it all. What it leaves runs on, or has been ended.
    pub fn perform(self, draft: Draft) -> Outcome {
        let mut rounds = Vec::new();
        let result = self.all(draft, &mut rounds);
        let [source, destination] = self.sides;
        match &result {
            Ok(_) => {}
            Err((_, Some(_))) => [source, destination].into_iter().for_each(|side| side.stopper.stop()),
            Err((_, None)) => destination.stopper.stop(),
        }
        Outcome { rounds, result }
    }

    fn all(&self, draft: Draft, rounds: &mut Vec<Round>) -> Result<Moved, (Error, Option<PathBuf>)> {
        let before = |error| (error, None);
        let [source, destination] = self.sides;
        let links = [source, destination].map(|side| side.stream.try_clone().context("can't share a socket"));
        let [from, to] = links.map(|stream| stream.map(Link::new));
        let (mut from, mut to) = (from.map_err(before)?, to.map_err(before)?);
        let ready = self.copy(&mut from, &mut to, draft, rounds);
        let (mut moved, file, stopped) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                // Whatever was done, the source has the guest. If it is gone, so is the guest.
                let _ = from.ask(Request::Go, |_| Ok(()));
                let _ = from.ask(Request::Stop, |_| Ok(()));
                let runs_on = from.ask(Request::Bye, |_| Ok(())).is_ok();
                let guest =
                    if runs_on { "the guest runs on where it is" } else { "the machine that it was on has ended" };
                self.show.say(&format!("not moved: {error:#}; {guest}"));
                return Err((error, None));
            }
        };
        self.hand_over(&mut from, &mut to).map_err(|error| (error, Some(file)))?;
        moved.stood_still = stopped.elapsed();
        Ok(moved)
    }

    /// Copies everything; the source's guest stands still at the end, and the file is whole. Returns since when, too.
    fn copy(
        &self,
        from: &mut Link,
        to: &mut Link,
        draft: Draft,
        rounds: &mut Vec<Round>,
    ) -> Result<(Moved, PathBuf, Instant)> {
        hello(from)?;
        self.wait_for_command(from)?;
        hello(to).context("the other machine")?;
        from.ask(Request::Start { mechanism: Mechanism::Auto, all_dirty: false }, |_| Ok(()))?;
        self.fail(At::All, &draft, 0)?;
        let mut sent = self.round(from, Share::All, false, rounds)?;
        load(to, sent.end).context("the other machine")?;
        while sent.left.is_some_and(|left| left > self.options.max_downtime) {
            ensure!(
                rounds.len() as u64 <= self.options.rounds,
                "after {} rounds {} pages are dirty again, more than the {} of --max-downtime: it does not converge",
                rounds.len() - 1,
                sent.left.unwrap_or(0),
                self.options.max_downtime
            );
            self.fail(At::Round, &draft, sent.end)?;
            sent = self.round(from, Share::Dirty, false, rounds)?;
            load(to, sent.end).context("the other machine")?;
        }
        self.fail(At::Stop, &draft, sent.end)?;
        let since = Instant::now();
        let sent = self.round(from, Share::Dirty, true, rounds)?;
        let stopped = sent.stopped.context("the guest was not stopped")?;
        self.fail(At::Load, &draft, sent.end)?;
        let (_, hash) = load(to, sent.end).context("the other machine")?;
        ensure!(
            hash == Some(stopped.hash),
            "memory has the hash {:#x} here and {hash:x?} there: they are not equal",
            stopped.hash
        );
        let machine = self.machine()?;
        let file = draft.finish(sent.end, &machine)?;
        let moved = Moved {
            pages: sent.pages + sent.zero_pages,
            ticks: stopped.ticks,
            hash_ticks: stopped.hash_ticks,
            frequency: stopped.frequency,
            hash: stopped.hash,
            stood_still: Duration::ZERO,
        };
        Ok((moved, file, since))
    }

    /// The source's process ends, and only then does the guest go on.
    fn hand_over(&self, from: &mut Link, to: &mut Link) -> Result<()> {
        /// More than a QEMU takes to end.
        const PATIENCE: Duration = Duration::from_secs(10);
        let [source, _] = self.sides;
        self.break_side(At::Release)?;
        match from.ask(Request::Release, |_| Ok(())) {
            Err(error) if !error.is::<Gone>() => return Err(error),
            _ => {}
        }
        if !source.wait(PATIENCE) {
            source.stopper.stop();
            ensure!(source.wait(2 * PATIENCE), "the first machine does not end");
        }
        self.break_side(At::Go)?;
        to.ask(Request::Go, |_| Ok(())).context("the other machine did not start the guest")?;
        let _ = to.ask(Request::Bye, |_| Ok(()));
        self.show.say("the guest goes on on the other machine");
        Ok(())
    }

    /// Waits until the guest's command has begun, and as long as is wanted.
    fn wait_for_command(&self, from: &mut Link) -> Result<()> {
        let mut begun = None;
        while begun.is_none_or(|begun: Instant| begun.elapsed() < self.options.after.unwrap_or_default()) {
            let mut over = false;
            from.ask(Request::Wait { milliseconds: 50 }, |reply| {
                over = matches!(reply, Reply::Waited { ended: true });
                Ok(())
            })?;
            ensure!(!over, "the guest ended before it could be moved");
            if begun.is_none() && self.watch().has_begun() {
                begun = Some(Instant::now());
            }
        }
        Ok(())
    }

    fn round(&self, from: &mut Link, share: Share, stop: bool, rounds: &mut Vec<Round>) -> Result<Sent> {
        let begun = Instant::now();
        let sent = send(from, share, stop)?;
        let Sent { pages, zero_pages, left, .. } = sent;
        rounds.push(Round { pages, zero_pages, left, seconds: begun.elapsed().as_secs_f64() });
        self.show.state(&format!("round {}: {pages} pages sent, {} dirty again", rounds.len() - 1, left.unwrap_or(0)));
        Ok(sent)
    }

    fn watch(&self) -> MutexGuard<'_, Watch<'w>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is written down of the machine, once all that the guest has written was read.
    fn machine(&self) -> Result<Machine> {
        /// It is in a pipe already.
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut cut = None;
        let read = self.read.wait_timeout_while(self.watch(), PATIENCE, |watch| {
            cut = watch.take_cut();
            cut.is_none()
        });
        drop(read);
        let cut = cut.context("the console does not say that the guest was stopped")?;
        let Guest::Runs { nonce, .. } = &self.known.guest else { bail!("the guest has no command") };
        Machine { guest: Guest::Runs { nonce: nonce.clone(), cut }, ..self.known.clone() }.with_disks_now()
    }

    /// Lets happen what is to fail before a step.
    fn fail(&self, at: At, draft: &Draft, end: u64) -> Result<()> {
        if self.fail == Some(Fail { what: What::File, at }) {
            let file = std::fs::OpenOptions::new().write(true).open(draft.unfinished())?;
            // The last block that was sent.
            file.write_all_at(&[0; BLOCK_BYTES as usize], end.saturating_sub(BLOCK_BYTES))?;
        }
        self.break_side(at)
    }

    fn break_side(&self, at: At) -> Result<()> {
        let [source, destination] = self.sides;
        let side = match self.fail {
            Some(Fail { what: What::Source, at: here }) if here == at => source,
            Some(Fail { what: What::Destination, at: here }) if here == at => destination,
            _ => return Ok(()),
        };
        side.stopper.stop();
        ensure!(side.wait(Duration::from_secs(30)), "a machine that was to end has not ended");
        Ok(())
    }
}

/// Begins to talk.
fn hello(link: &mut Link) -> Result<()> {
    let mut spoken = 0;
    link.ask(Request::Hello { version: VERSION }, |reply| {
        if let Reply::Welcome { version, .. } = reply {
            spoken = version;
        }
        Ok(())
    })?;
    ensure!(spoken == VERSION, "the hypervisor speaks version {spoken} of the protocol, and this tool {VERSION}");
    Ok(())
}
