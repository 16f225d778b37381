//! A session: what the plan says, step by step, until the guest or the plan ends.

use super::link::{Gone, Link};
use super::plan::Plan;
use super::record::{PAGE, Record, Round};
use super::show::Show;
use crate::events::{Header, Writer};
use anyhow::{Context, Result, ensure};
use hypervisor_abi::manager::{Census, Findings, Mechanism, Reply, Request, VERSION, words};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is left of a session when it is over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// How the log was kept.
    pub mechanism: Option<Mechanism>,
    /// Harvests and audits.
    pub rounds: u64,
    /// Dirty pages of all rounds together.
    pub pages: u64,
    /// Where the log's files are.
    pub out: Option<PathBuf>,
    /// Sums over all audits, and how many there were.
    pub audit: Option<(u64, Findings)>,
    /// Leaves and tables before the log and after it.
    pub restored: Option<(Census, Census)>,
    /// Stores that met a policy: reported, denied, and lost.
    pub stores: Option<[u64; 3]>,
    /// Rounds of splitting and collapsing, and what the engine counted meanwhile.
    pub storm: Option<(u64, BTreeMap<String, u64>)>,
    /// Rounds of random changes.
    pub churn: Option<u64>,
    /// Where the engine's events are.
    pub events: Option<PathBuf>,
    /// The machine was gone before the plan was done.
    pub cut_short: bool,
    /// What was asked for and did not happen, in sentences.
    pub failures: Vec<String>,
}

impl Summary {
    /// The audit's last line.
    pub fn audit_line(&self) -> Option<String> {
        let (rounds, found) = self.audit?;
        Some(format!(
            "audit: rounds {rounds}, pages changed {}, reported {}, missed {}, over-reported {}",
            found.changed, found.reported, found.missed, found.over_reported
        ))
    }

    /// Whether everything is as it should be.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// A mechanism in words.
pub fn describe(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Auto => "the best mechanism there is",
        Mechanism::WriteProtect => "write protection",
        Mechanism::WriteProtectEager => "write protection, split eagerly",
        Mechanism::HardwarePage => "hardware, by pages",
        Mechanism::HardwareBlock => "hardware, by blocks",
    }
}

/// A session that has not begun.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    show: Arc<Show>,
    stores: Option<BufWriter<File>>,
    events: Option<Writer>,
    summary: Summary,
    memory: Vec<(u64, u64)>,
}

/// A log that runs.
struct Logging {
    record: Option<Record>,
    begun: Instant,
    last: f64,
    faults: u64,
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
    /// Gets ready for a plan.
    ///
    /// # Errors
    /// If the plan's folder can't be written to.
    pub fn new(plan: Plan, show: Arc<Show>) -> Result<Self> {
        let mut stores = None;
        if let Some(folder) = &plan.out {
            std::fs::create_dir_all(folder).with_context(|| format!("can't make the folder {}", folder.display()))?;
            if !plan.protect.is_empty() {
                let path = folder.join("stores.csv");
                let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
                let mut file = BufWriter::new(file);
                writeln!(file, "ipa,va,pc,cpu,denied")?;
                stores = Some(file);
            }
        }
        Ok(Self { plan, show, stores, events: None, summary: Summary::default(), memory: Vec::new() })
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
                self.show.say(&format!("the services have ended: {error:#}"));
                Err(error)
            }
            _ => {
                self.summary.cut_short = result.is_err();
                self.judge();
                Ok(self.summary)
            }
        }
    }

    fn perform(&mut self, link: &mut Link) -> Result<()> {
        self.hello(link)?;
        let mut ended = false;
        while self.plan.protect_late && !self.show.has_begun() && !ended {
            ended = wait(link, Duration::from_millis(50))?;
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
            ended = wait(link, self.plan.every)?;
            if self.summary.stores.is_some() {
                self.take_stores(link)?;
            }
            self.take_events(link)?;
        }
        self.take_events(link)?;
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

    /// Splits and collapses until the guest ends. What happens once the guest's command runs is what counts: while it boots,
    /// the guest also meets registers that the hypervisor guards by faults.
    fn storm(&mut self, link: &mut Link) -> Result<()> {
        let mut before = counters(link)?;
        let mut begun = self.show.has_begun();
        let mut rounds = 0;
        self.summary.storm = Some((0, BTreeMap::new()));
        loop {
            let ended = wait(link, self.plan.every)?;
            if !begun && self.show.has_begun() {
                (begun, rounds, before) = (true, 0, counters(link)?);
            }
            if !ended {
                link.ask(Request::Storm, |_| Ok(()))?;
                rounds += 1;
                self.show.state(&format!("split all memory to pages and collapsed it again {rounds} times"));
            }
            self.take_events(link)?;
            let mut counted = counters(link)?;
            for (name, value) in &mut counted {
                *value -= before.get(name).copied().unwrap_or(0);
            }
            self.summary.storm = Some((rounds, counted));
            if ended {
                return Ok(());
            }
        }
    }

    /// Changes the table at random until the guest ends, then makes it as it was.
    fn churn(&mut self, link: &mut Link, seed: u64) -> Result<()> {
        /// Changes in a round: few enough that the log of events has room for all that they do.
        const CHANGES: u32 = 8;
        let mut rounds = 0;
        while !wait(link, self.plan.every)? {
            link.ask(Request::Churn { seed: seed.wrapping_add(rounds << 32), changes: CHANGES }, |_| Ok(()))?;
            rounds += 1;
            self.summary.churn = Some(rounds);
            self.take_events(link)?;
            // The stores that met a range of the churn's are nobody's news, but their pages are to be closed again.
            link.ask(Request::Stores, |_| Ok(()))?;
            self.show.state(&format!("changed the table at random {} times", rounds * u64::from(CHANGES)));
        }
        link.ask(Request::Churn { seed, changes: 0 }, |_| Ok(()))
    }

    /// Asks for the engine's events, if they are wanted.
    fn take_events(&mut self, link: &mut Link) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        link.ask(Request::Events, |reply| match reply {
            Reply::Events(records) => events.add(records),
            Reply::EventsLeft { lost } => {
                events.lose(lost);
                Ok(())
            }
            _ => Ok(()),
        })
    }

    /// Logs until the guest ends, or there were rounds enough. Says whether the guest has ended.
    fn log(&mut self, link: &mut Link, mechanism: Mechanism) -> Result<bool> {
        let mut used = mechanism;
        link.ask(Request::Start { mechanism, all_dirty: false }, |reply| {
            if let Reply::Started { mechanism, .. } = reply {
                used = mechanism;
            }
            Ok(())
        })?;
        self.summary.mechanism = Some(used);
        let record =
            self.plan.out.as_deref().map(|out| Record::begin(out, &self.memory, describe(used))).transpose()?;
        let mut logging = Logging { record, begun: Instant::now(), last: 0.0, faults: 0, harvests: 0 };
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
                ended = wait(link, self.plan.every / 2)?;
                let harvest = self.take(link, self.harvest(logging.harvests))?;
                self.note(logging, harvest)?;
                self.take_events(link)?;
            }
            let every = if self.plan.audit { self.plan.every / 2 } else { self.plan.every };
            ended = ended || wait(link, every)?;
            let request = if self.plan.audit { Request::Audit } else { self.harvest(logging.harvests) };
            let harvest = self.take(link, request)?;
            self.note(logging, harvest)?;
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
    fn note(&mut self, logging: &mut Logging, harvest: Harvest) -> Result<()> {
        let seconds = logging.begun.elapsed().as_secs_f64();
        let rate = harvest.pages as f64 / (seconds - logging.last).max(0.001);
        logging.harvests += 1;
        self.summary.pages += harvest.pages;
        let mut state = format!(
            "{seconds:.0} s: {} dirty pages ({}), {:.1} MiB/s, {} of tables",
            harvest.pages,
            size(harvest.pages * PAGE),
            rate * PAGE as f64 / f64::from(1 << 20),
            size(harvest.table_bytes)
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
        if let Some(record) = &mut logging.record {
            record.add(&Round {
                number: logging.harvests,
                seconds,
                words: harvest.words,
                pages: harvest.pages,
                rate,
                table_bytes: harvest.table_bytes,
                faults: harvest.permission_faults.saturating_sub(logging.faults),
            })?;
        }
        (logging.last, logging.faults) = (seconds, harvest.permission_faults);
        Ok(())
    }

    /// Asks for the stores that met a policy.
    fn take_stores(&mut self, link: &mut Link) -> Result<()> {
        /// Stores of one round that are shown.
        const SHOWN: u64 = 8;
        let mut seen = 0;
        let Self { stores: file, show, summary, .. } = self;
        let [reported, refused, missing] = summary.stores.get_or_insert_default();
        link.ask(Request::Stores, |reply| {
            match reply {
                Reply::Store { ipa, va, pc, cpu, denied } => {
                    *(if denied { &mut *refused } else { &mut *reported }) += 1;
                    seen += 1;
                    if seen <= SHOWN {
                        let what = if denied { "denied" } else { "reported" };
                        show.say(&format!("store {what}: to {ipa:#x} (virtual {va:#x}) by {pc:#x} on CPU {cpu:#x}"));
                    }
                    if let Some(file) = file {
                        writeln!(file, "{ipa:#x},{va:#x},{pc:#x},{cpu:#x},{}", u8::from(denied))?;
                    }
                }
                Reply::Stores { lost } => *missing += lost,
                _ => {}
            }
            Ok(())
        })?;
        if seen > SHOWN {
            show.say(&format!("and {} more stores in this round", seen - SHOWN));
        }
        Ok(())
    }

    /// Whether all that was asked for has happened.
    fn judge(&mut self) {
        let summary = &mut self.summary;
        let mut fail = |sentence: String| summary.failures.push(sentence);
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

/// Waits so long, or until the guest ends. Says whether it has ended.
fn wait(link: &mut Link, time: Duration) -> Result<bool> {
    let mut over = false;
    link.ask(Request::Wait { milliseconds: time.as_millis().try_into().unwrap_or(u32::MAX) }, |reply| {
        if let Reply::Waited { ended } = reply {
            over = ended;
        }
        Ok(())
    })?;
    Ok(over)
}

fn counters(link: &mut Link) -> Result<BTreeMap<String, u64>> {
    let mut counted = BTreeMap::new();
    link.ask(Request::Counters, |reply| {
        if let Reply::Counter { name, value } = reply {
            counted.insert(name.to_owned(), value);
        }
        Ok(())
    })?;
    Ok(counted)
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=0xf_ffff => format!("{} KiB", bytes >> 10),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
