//! A session: what the plan says, step by step, until the guest or the plan ends.

mod ask;
mod churn;
mod events;
mod logs;
mod saves;
mod stores;
mod summary;
mod wishes;

pub use saves::{Sent, load, send};
pub use summary::{Summary, describe};

use super::about::About;
use super::link::{Gone, Link};
use super::plan::Plan;
use super::show::Show;
use crate::events::{Header, Writer};
use crate::kallsyms::Symbols;
use anyhow::{Context, Result, ensure};
use hypervisor_abi::manager::{Findings, Reply, Request, VERSION};
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A session that has not begun.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    show: Arc<Show>,
    stores: Option<BufWriter<File>>,
    /// The guest kernel's, where its stores are told of.
    symbols: Option<Symbols>,
    events: Option<Writer>,
    summary: Summary,
    memory: Vec<(u64, u64)>,
    about: About,
    /// What has become of the save.
    saved: RefCell<Option<Result<(PathBuf, u64), String>>>,
    /// The user wants it to end: the log is harvested once more, and all is written.
    asked_to_end: Arc<AtomicBool>,
}

impl Session {
    /// Gets ready for a plan.
    ///
    /// # Errors
    /// If the plan's folder can't be written to.
    pub fn new(plan: Plan, show: Arc<Show>, asked_to_end: Arc<AtomicBool>) -> Result<Self> {
        let mut stores = None;
        if let Some(folder) = &plan.out {
            std::fs::create_dir_all(folder).with_context(|| format!("can't make the folder {}", folder.display()))?;
            if !plan.protect.is_empty() {
                let path = folder.join("stores.csv");
                let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
                let mut file = BufWriter::new(file);
                writeln!(file, "ipa,va,pc,cpu,denied,symbol")?;
                stores = Some(file);
            }
        }
        let about = About::new(plan.setup.clone());
        let mut symbols = None;
        if let Some(kernel) = plan.kernel.as_ref().filter(|_| !plan.protect.is_empty()) {
            let image = std::fs::read(kernel).with_context(|| format!("can't read {}", kernel.display()))?;
            symbols = Symbols::read(&image);
        }
        Ok(Self {
            plan,
            show,
            stores,
            symbols,
            events: None,
            summary: Summary::default(),
            memory: Vec::new(),
            about,
            saved: RefCell::default(),
            asked_to_end,
        })
    }

    /// Does it all. A machine that ends early ends the session, which is no error.
    ///
    /// # Errors
    /// If the management core refuses, or a file can't be written.
    pub fn run(mut self, mut link: Link) -> Result<Summary> {
        let result = self.perform(&mut link);
        if let Some(events) = self.events.take() {
            self.summary.events = Some(events.finish()?);
        }
        if let Some(file) = &mut self.stores {
            file.flush()?;
        }
        self.show.clear();
        match result {
            Err(error) if !error.is::<Gone>() => {
                // The guest is not to wait for a host that has given up. If the machine is gone, so is the wait.
                let _ = link.ask(Request::Bye, |_| Ok(()));
                Err(error)
            }
            _ => {
                self.summary.saved = self.saved.get_mut().as_ref().and_then(|saved| saved.clone().ok());
                self.summary.cut_short = result.is_err() && self.summary.saved.is_none();
                self.judge();
                self.describe()?;
                Ok(self.summary)
            }
        }
    }

    fn perform(&mut self, link: &mut Link) -> Result<()> {
        self.hello(link)?;
        if let Some(resume) = self.plan.resume.clone() {
            self.resume(link, &resume)?;
        }
        let mut ended = false;
        while self.plan.protect_late && !self.show.has_begun() && !ended {
            ended = self.wait(link, Duration::from_millis(50))?;
        }
        for protect in self.plan.protect.clone() {
            let super::plan::Protect { start, end, policy } = protect;
            link.ask(Request::Protect { start, end, policy }, |_| Ok(()))?;
        }
        if !self.plan.protect.is_empty() {
            self.summary.stores = Some([0; 3]);
        }
        if self.plan.storm.is_some() {
            self.storm(link)?;
            ended = true;
        }
        if let Some(mechanism) = self.plan.dirty {
            ended = self.log(link, mechanism)?;
        }
        if let Some(seed) = self.plan.churn {
            self.churn(link, seed)?;
            ended = true;
        }
        while (self.summary.stores.is_some() || self.events.is_some()) && !ended {
            ended = self.wait(link, self.plan.every)?;
            if self.summary.stores.is_some() {
                self.take_stores(link)?;
            }
            self.take_events(link)?;
        }
        self.take_events(link)?;
        while self.plan.save.is_some() && !ended {
            ended = self.wait(link, self.plan.every)?;
        }
        link.ask(Request::Bye, |_| Ok(()))
    }

    fn hello(&mut self, link: &mut Link) -> Result<()> {
        let mut spoken = 0;
        let mut header = None;
        link.ask(Request::Hello { version: VERSION }, |reply| {
            match reply {
                Reply::Memory { start, end } => self.memory.push((start, end)),
                Reply::Welcome { version, cpus, hardware_dirty, bbm } => {
                    spoken = version;
                    let cpus = u8::try_from(cpus + 1).unwrap_or(u8::MAX);
                    header = Some(Header { bbm, hardware_dirty, cpus, lost: 0 });
                }
                _ => {}
            }
            Ok(())
        })?;
        ensure!(spoken == VERSION, "the hypervisor speaks version {spoken} of the protocol, and this tool {VERSION}");
        if let (Some(path), Some(header)) = (&self.plan.events, header) {
            self.events = Some(Writer::begin(path, header)?);
        }
        Ok(())
    }

    /// Says in the folder of the log's files what run they are of.
    fn describe(&mut self) -> Result<()> {
        let (Some(folder), summary) = (&self.plan.out, &self.summary) else { return Ok(()) };
        let about = &mut self.about;
        about.guest = self.memory.clone();
        about.mechanism = summary.mechanism.map(describe).unwrap_or_default().to_owned();
        about.table_bytes = summary.restored.map(|(before, after)| (before.table_bytes, after.table_bytes));
        about.audit = summary.audit_line();
        about.stores = summary.stores;
        about.failures = summary.failures.clone();
        about.write(folder)
    }

    /// Whether all that was asked for has happened.
    fn judge(&mut self) {
        let summary = &mut self.summary;
        let mut fail = |sentence: String| summary.failures.push(sentence);
        match self.saved.get_mut() {
            Some(Err(why)) => fail(why.clone()),
            None if self.plan.save.is_some() => fail("the guest ended before it was saved".into()),
            _ => {}
        }
        if self.plan.audit {
            match summary.audit {
                None | Some((0, _)) => fail("the machine ended before the first audit".into()),
                Some((_, Findings { missed: 1.., .. })) => fail("dirty pages were missed".into()),
                Some(_) => {}
            }
        }
        if let Some((before, after)) = summary.restored
            && before != after
            && self.plan.protect.is_empty()
        {
            fail(format!("the log's end has not restored the leaves: before {before:?}, after {after:?}"));
        }
        if self.plan.events.is_some() && summary.events.is_none() {
            fail("the machine ended before its events could be taken".into());
        }
        if let Some(wanted) = self.plan.storm {
            let rounds = summary.storm.as_ref().map_or(0, |storm| storm.0);
            if rounds < wanted {
                fail(format!("the guest ended after {rounds} rounds of splitting, {wanted} were asked for"));
            }
        }
    }
}
