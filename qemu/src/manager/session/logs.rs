//! Logs of dirty pages: harvests, and audits of them.

use super::Session;
use super::ask::counters;
use super::summary::describe;
use crate::live;
use crate::manager::link::Link;
use crate::manager::record::{Record, Round};
use crate::size::{self, PAGE};
use anyhow::{Result, ensure};
use hypervisor_abi::manager::{Findings, Mechanism, Reply, Request, words};
use std::collections::BTreeMap;
use std::time::Instant;

/// A log that runs.
struct Logging {
    record: Option<Record>,
    begun: Instant,
    last: f64,
    faults: u64,
    /// Splits and collapses up to the last harvest.
    sizes: (u64, u64),
    harvests: u64,
}

/// What a harvest or an audit brought.
#[derive(Default)]
struct Harvest {
    words: Vec<(u64, u64)>,
    pages: u64,
    table_bytes: u64,
    permission_faults: u64,
    findings: Option<Findings>,
}

impl Session {
    /// Logs until the guest ends, or there were rounds enough. Says whether the guest has ended.
    pub(super) fn log(&mut self, link: &mut Link, mechanism: Mechanism) -> Result<bool> {
        let mut used = mechanism;
        link.ask(Request::Start { mechanism, all_dirty: false }, |reply| {
            if let Reply::Started { mechanism, .. } = reply {
                used = mechanism;
            }
            Ok(())
        })?;
        self.summary.mechanism = Some(used);
        if let Some(screen) = self.show.screen() {
            screen.update(|state| {
                state.set_memory(&self.memory);
                (state.mechanism, state.logging) = (describe(used).to_owned(), true);
            });
        }
        let record =
            self.plan.out.as_deref().map(|out| Record::begin(out, &self.memory, describe(used))).transpose()?;
        let mut logging = Logging {
            record,
            begun: Instant::now(),
            last: 0.0,
            faults: 0,
            sizes: sizes(&counters(link)?),
            harvests: 0,
        };
        let result = self.rounds(link, &mut logging);
        // What was recorded is kept, however it ended.
        if let Some(record) = logging.record.take() {
            self.summary.out = Some(record.finish()?);
        }
        let ended = result?;
        link.ask(Request::Stop, |reply| {
            if let Reply::Stopped { before, after } = reply {
                self.summary.restored = Some((before, after));
            }
            Ok(())
        })?;
        Ok(ended)
    }

    fn rounds(&mut self, link: &mut Link, logging: &mut Logging) -> Result<bool> {
        if self.plan.audit {
            // The first one has nothing to compare with.
            self.take(link, Request::Audit)?;
            self.summary.audit = Some((0, Findings::default()));
        }
        loop {
            let mut ended = false;
            if self.plan.audit {
                // Between audits the log is harvested while the guest writes.
                ended = self.wait(link, self.plan.every / 2)?;
                let harvest = self.take_quiet(link, self.harvest(logging.harvests), logging.harvests)?;
                self.note(link, logging, harvest)?;
                self.take_events(link)?;
            }
            let every = if self.plan.audit { self.plan.every / 2 } else { self.plan.every };
            ended = ended || self.wait(link, every)?;
            let request = if self.plan.audit { Request::Audit } else { self.harvest(logging.harvests) };
            let harvest = self.take_quiet(link, request, logging.harvests)?;
            self.note(link, logging, harvest)?;
            self.take_events(link)?;
            if self.summary.stores.is_some() {
                self.take_stores(link)?;
            }
            self.summary.rounds += 1;
            if ended || self.plan.rounds.is_some_and(|rounds| self.summary.rounds >= rounds) {
                return Ok(ended);
            }
        }
    }

    /// How the log is harvested. The oracle is shown both ways.
    fn harvest(&self, before: u64) -> Request {
        Request::Harvest { look_first: self.plan.events.is_some() && before % 4 < 2 }
    }

    /// [`Session::take`], with mediated devices quiet if that is wanted. Then they go on: by themselves, or every other time by way of
    /// what a save keeps of them.
    fn take_quiet(&mut self, link: &mut Link, request: Request, before: u64) -> Result<Harvest> {
        if !self.plan.quiesce {
            return self.take(link, request);
        }
        link.ask(Request::Quiesce, |_| Ok(()))?;
        let harvest = self.take(link, request)?;
        link.ask(Request::Resume { restored: before % 2 == 1 }, |_| Ok(()))?;
        Ok(harvest)
    }

    fn take(&mut self, link: &mut Link, request: Request) -> Result<Harvest> {
        let mut harvest = Harvest::default();
        link.ask(request, |reply| {
            match reply {
                Reply::Pages(bytes) => harvest.words.extend(words(bytes)),
                Reply::Harvested { pages, table_bytes, permission_faults } => {
                    (harvest.pages, harvest.table_bytes) = (pages, table_bytes);
                    harvest.permission_faults = permission_faults;
                }
                Reply::Audited { pages, table_bytes, permission_faults, findings } => {
                    (harvest.pages, harvest.table_bytes) = (pages, table_bytes);
                    harvest.permission_faults = permission_faults;
                    harvest.findings = findings;
                }
                _ => {}
            }
            Ok(())
        })?;
        let came: u64 = harvest.words.iter().map(|(_, bits)| u64::from(bits.count_ones())).sum();
        ensure!(came == harvest.pages, "{} dirty pages were sent, and {came} have come", harvest.pages);
        Ok(harvest)
    }

    /// Counts, writes and shows what a harvest brought.
    fn note(&mut self, link: &mut Link, logging: &mut Logging, harvest: Harvest) -> Result<()> {
        let seconds = logging.begun.elapsed().as_secs_f64();
        let rate = harvest.pages as f64 / (seconds - logging.last).max(0.001);
        logging.harvests += 1;
        self.summary.pages += harvest.pages;
        let mut state = format!(
            "{seconds:.0} s: {} dirty pages ({}), {:.1} MiB/s, {} of tables",
            harvest.pages,
            size::short(harvest.pages * PAGE),
            rate * PAGE as f64 / f64::from(1 << 20),
            size::short(harvest.table_bytes)
        );
        if let (Some(found), Some((audits, sum))) = (&harvest.findings, &mut self.summary.audit) {
            *audits += 1;
            sum.changed += found.changed;
            sum.reported += found.reported;
            sum.missed += found.missed;
            sum.over_reported += found.over_reported;
            sum.first_missed = sum.first_missed.or(found.first_missed);
            if let Some(first) = found.first_missed {
                self.show.say(&format!(
                    "audit {audits}: {} pages changed and were not reported, the first one at {first:#x}",
                    found.missed
                ));
            }
        }
        if let Some((audits, sum)) = &self.summary.audit {
            state += &format!("; {audits} audits, missed {}", sum.missed);
        }
        self.show.state(&state);
        if self.about.begun.is_none() && self.show.has_begun() {
            self.about.begun = Some(seconds);
        }
        // A machine that ends just now does not cost this harvest its line.
        let counted = counters(link);
        let (splits, collapses) = counted.as_ref().map_or(logging.sizes, sizes);
        if let (Some(screen), Ok(counted)) = (self.show.screen(), &counted) {
            screen.update(|state| {
                state.harvest(live::Harvest {
                    seconds,
                    words: harvest.words.clone(),
                    pages: harvest.pages,
                    rate,
                    table_bytes: harvest.table_bytes,
                    counted: counted.iter().map(|(name, count)| (name.clone(), *count)).collect(),
                    audits: self.summary.audit.as_ref().map(|(audits, sum)| (*audits, sum.missed)),
                });
            });
        }
        if let Some(record) = &mut logging.record {
            record.add(&Round {
                number: logging.harvests,
                seconds,
                words: harvest.words,
                pages: harvest.pages,
                rate,
                table_bytes: harvest.table_bytes,
                faults: harvest.permission_faults.saturating_sub(logging.faults),
                splits: splits.saturating_sub(logging.sizes.0),
                collapses: collapses.saturating_sub(logging.sizes.1),
            })?;
        }
        (logging.last, logging.faults, logging.sizes) = (seconds, harvest.permission_faults, (splits, collapses));
        counted.map(|_| ())
    }
}

/// How many leaves were split so far, and how many were made by collapses.
fn sizes(counted: &BTreeMap<String, u64>) -> (u64, u64) {
    let sum = |what: &str| counted.iter().filter(|(name, _)| name.starts_with(what)).map(|(_, count)| count).sum();
    (sum("split-"), sum("collapse-"))
}
