//! A command in a guest: its output, its input, its end.

use crate::cli::Log;
use crate::console::{Cut, Extract, Stream};
use crate::ending::{self, Status};
use crate::feed::Feed;
use crate::machine::Machine;
use crate::manager::saving::{NO_COMMAND, Save};
use crate::manager::show::Show;
use crate::run::{self, Flow, Limits, Outcome, Stop, Stopper};
use crate::setup::emulator::Emulator;
use anyhow::{Context, Result};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Seconds that a command in the guest may take, unless `--timeout` says otherwise.
pub(super) const TIMEOUT: u64 = 300;

/// Whoever reads the console of a guest with a command.
pub(super) struct Watch<'w> {
    show: &'w Show,
    /// All of the console is shown.
    everything: bool,
    extract: Extract,
    feed: Option<Feed>,
    save: Option<Arc<Save>>,
    /// A guest that waits for another command was told that there is none.
    answered: bool,
    failed: Option<io::Error>,
}

impl<'w> Watch<'w> {
    /// One that shows what `extract` finds, or all where the log is that loud.
    pub(super) fn new(show: &'w Show, log: Log, extract: Extract) -> Self {
        Self { show, everything: log >= Log::Debug, extract, feed: None, save: None, answered: false, failed: None }
    }

    /// Tells a save what is seen.
    pub(super) fn with_save(self, save: Option<&Arc<Save>>) -> Self {
        Self { save: save.cloned(), ..self }
    }

    /// Feeds the command, and returns what is to be typed for that.
    pub(super) fn feed(&mut self, source: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
        let (feed, typed) = Feed::begin(source);
        self.feed = Some(feed);
        typed
    }

    /// Takes what the console has said.
    pub(super) fn see(&mut self, bytes: &[u8]) -> Flow {
        let Self { show, everything, extract, feed, save, answered, failed } = self;
        let mut print = |bytes: &[u8]| {
            if let Err(error) = show.guest_wrote(bytes) {
                *failed = Some(error);
            }
        };
        if *everything {
            print(bytes);
            extract.push(bytes, |_, _| {});
        } else {
            extract.push(bytes, |stream, bytes| match stream {
                Stream::Output => print(bytes),
                Stream::Error => show.guest_complained(bytes),
            });
            show.hold_newline(extract.holds_newline());
        }
        if extract.has_begun() {
            show.begin();
        }
        if let Some(feed) = feed {
            feed.allow(extract.asked());
        }
        if let Some(save) = save {
            save.see(extract);
        }
        let is_over = extract.is_ready() && !save.as_ref().is_some_and(|save| save.waits_for_the_end());
        if is_over && !std::mem::replace(answered, true) {
            return Flow::Send(NO_COMMAND.to_vec());
        }
        Flow::Continue
    }

    /// Runs the machine until it ends, and says what has come of the command.
    pub(super) fn run(
        mut self,
        emulator: &Emulator,
        machine: &Machine,
        total: Duration,
        stopper: &Stopper,
        typed: Receiver<Vec<u8>>,
    ) -> Result<Status> {
        let limits = Limits { total, silence: total };
        let see = |bytes: &[u8], _: &_| self.see(bytes);
        let outcome = run::capture_within(emulator, machine, limits, stopper, Some(typed), see)?;
        self.finish(&outcome, total)
    }

    /// Whether the command has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.extract.has_begun()
    }

    /// Where the guest was stopped, if that is new.
    pub(super) fn take_cut(&mut self) -> Option<Cut> {
        self.extract.take_cut()
    }

    /// What has come of it, after a run that might take so long.
    pub(super) fn finish(mut self, outcome: &Outcome, limit: Duration) -> Result<Status> {
        if self.extract.is_away() && self.extract.holds_newline() {
            // What the guest writes next, elsewhere, is another line, however this machine has ended.
            self.failed = self.failed.or(self.show.guest_wrote(b"\n").err());
        }
        self.show.clear();
        if let Some(error) = self.failed {
            return Err(error).context("can't print what the command wrote");
        }
        let status = match (ending::judge(outcome), self.extract.status()) {
            (Status::Success, Some(status)) => Status::Command(status),
            // The command itself ended the machine, unless the kernel crashed: then it reboots too (panic=-1).
            (Status::Success, None) if self.extract.has_begun() && !kernel_panic(outcome) => Status::Success,
            (Status::Success, None) => Status::NoResult,
            (other, _) => other,
        };
        let text = ending::explain(status, outcome, limit.as_secs());
        if !text.is_empty() && outcome.stop != Stop::Stopped {
            eprintln!("{text}");
        }
        Ok(status)
    }
}

/// Whether the guest's kernel said that it crashed.
pub(super) fn kernel_panic(outcome: &Outcome) -> bool {
    outcome.console.lines().iter().any(|line| line.contains("Kernel panic - not syncing"))
}
