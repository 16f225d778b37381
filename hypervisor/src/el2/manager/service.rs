//! What the host can ask for, and the answers.

use crate::el2::base::{cpu, firmware, refusal::Refusal, registers::read_register};
use crate::el2::guest_memory::{self, events, operations, table_lock::TableLock, watch, watch::Set};
use crate::el2::manager::dirty::{self, Drops, Region};
use crate::el2::manager::moving::{self, Moving};
use crate::el2::manager::port::{Port, Received};
use crate::el2::manager::presence::{attend, guest_has_ended};
use crate::el2::manager::why::Why;
use crate::el2::manager::{audit, churn};
use crate::el2::mediation::{self, hold};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use hypervisor::granule::PAGE;
use hypervisor::policy;
use hypervisor::range::PhysRange;
use hypervisor_abi::events::RECORD;
use hypervisor_abi::manager::{
    Census, Findings, MAX_WORDS, Mechanism, Message, Policy, Reply, Request, VERSION, WORD_BYTES,
};
use stage2::{Event, Ipa, IpaRange, LeafSize};

/// The management core's state.
pub struct Service {
    port: Port,
    regions: Vec<Region>,
    drops: Drops,
    /// What runs, and leaves and tables before it started.
    running: Option<(Mechanism, Census)>,
    /// Whether the hashes are those of an audit of the log that runs.
    hashed: bool,
    chunk: Box<Chunk>,
    moving: Option<Moving>,
}

/// Why nothing is sent or loaded.
const NO_STORE: &str = "this machine has no store to send to, or to load from: start it with store=ADDRESS";

/// Words of the bitmap on their way to the host.
struct Chunk {
    bytes: [u8; MAX_WORDS],
    used: usize,
}

impl Chunk {
    /// Adds a word; sends what there is when it is full.
    fn push(&mut self, port: &mut Port, number: u32, address: u64, bits: u64) {
        if let Some(slot) = self.bytes.get_mut(self.used..self.used + WORD_BYTES) {
            let (first, second) = slot.split_at_mut(8);
            first.copy_from_slice(&address.to_le_bytes());
            second.copy_from_slice(&bits.to_le_bytes());
            self.used += WORD_BYTES;
        }
        if self.used + WORD_BYTES > MAX_WORDS {
            self.flush(port, number);
        }
    }

    fn flush(&mut self, port: &mut Port, number: u32) {
        if let Some(bytes) = self.bytes.get(..self.used).filter(|bytes| !bytes.is_empty()) {
            port.send(number, Reply::Pages(bytes));
        }
        self.used = 0;
    }
}

/// An answer, or why there is none.
type Answer = Result<Reply<'static>, Why>;

impl Service {
    /// A service for a guest with this memory.
    ///
    /// # Errors
    ///
    /// A sentence, where there is no room for a log and for hashes of all pages.
    pub fn new(
        port: Port,
        memory: &[PhysRange],
        drop_dirty: Option<u64>,
        moving: Option<Moving>,
    ) -> Result<Self, Refusal> {
        let mut regions = Vec::new();
        for range in memory {
            let ipas = IpaRange::new(Ipa(range.start()), Ipa(range.end()))?;
            regions.push(Region::new(ipas).ok_or_else(|| {
                Refusal(alloc::format!(
                    "there is no room for the dirty log of {range} beside the hypervisor: load the modules and the \
                     device tree at higher addresses, or leave manager=on out"
                ))
            })?);
        }
        let chunk = Box::new(Chunk { bytes: [0; MAX_WORDS], used: 0 });
        Ok(Self { port, regions, drops: Drops::new(drop_dirty), running: None, hashed: false, chunk, moving })
    }

    /// The next request, if one has come.
    pub fn receive(&mut self) -> Received {
        self.port.receive()
    }

    /// Answers what cannot be understood.
    pub fn refuse_rubbish(&mut self) {
        self.port.send(0, Reply::Refused("this is no request of the protocol's"));
    }

    /// Does what is asked for, and answers.
    pub fn answer(&mut self, message: Message<Request>) {
        let Message { number, body } = message;
        match self.perform(number, body) {
            Ok(reply) => self.port.send(number, reply),
            Err(why) => self.port.send(number, Reply::Refused(&why.sentence(Memory(&self.regions)))),
        }
        if self.moving.as_ref().is_some_and(Moving::is_gone) {
            moving::end();
        }
    }

    fn perform(&mut self, number: u32, request: Request) -> Answer {
        let table = guest_memory::table().ok_or("the guest has no memory yet")?;
        if let Some(why) = self.moving.as_ref().and_then(|moving| moving.refuses(&request)) {
            return Err(why.into());
        }
        match request {
            Request::Hello { version } => self.hello(table, number, version),
            Request::Start { mechanism, all_dirty } => self.start(table, mechanism, all_dirty),
            Request::Harvest { look_first } => self.harvest(table, number, look_first),
            Request::Audit => self.audit(table, number),
            Request::Stop => self.stop(table),
            Request::Protect { start, end, policy } => self.protect(start, end, policy),
            Request::Stores => self.stores(number),
            Request::Freeze => Ok(operations::freeze(table).map(done)?),
            Request::Thaw => {
                operations::thaw(table);
                Ok(Reply::Done)
            }
            Request::Quiesce => quiesce(table),
            Request::Resume { restored } => resume(table, restored),
            Request::Storm => self.storm(table),
            Request::Churn { seed, changes } => {
                self.no_log_runs()?;
                churn::churn(table, &self.regions, seed, changes).map(done)
            }
            Request::Events => self.events(number),
            Request::Counters => Ok(self.counters(number)),
            Request::Wait { milliseconds } => Ok(Reply::Waited { ended: self.wait(milliseconds) }),
            Request::Send { share, stop } => {
                let logs = self.running.is_some();
                let Self { moving, regions, drops, .. } = self;
                moving.as_mut().ok_or(NO_STORE)?.send(table, regions, drops, (logs, share, stop))
            }
            Request::Load { end } => self.moving.as_mut().ok_or(NO_STORE)?.load(&self.regions, end),
            Request::Go => self.moving.as_mut().ok_or(NO_STORE)?.go(),
            Request::Release => self.moving.as_mut().ok_or(NO_STORE)?.release(),
            Request::Bye => {
                // A guest that has not come is not let go: its devices would do what nobody has checked.
                if !self.moving.as_ref().is_some_and(Moving::awaits_guest) {
                    operations::thaw(table);
                    hold::resume_all();
                }
                attend(false);
                Ok(Reply::Done)
            }
        }
    }

    fn hello(&mut self, table: &TableLock, number: u32, version: u16) -> Answer {
        if version != VERSION {
            return Err(Why::Version(version));
        }
        for Region { range, .. } in &self.regions {
            self.port.send(number, Reply::Memory { start: range.start().0, end: range.end().0 });
        }
        attend(true);
        let table = table.read();
        Ok(Reply::Welcome {
            version: VERSION,
            // All but this one.
            cpus: cpu::all().count() as u32 - 1,
            hardware_dirty: table.has_hardware_dirty_state(),
            bbm: table.bbm_level() as u8,
        })
    }

    fn start(&mut self, table: &TableLock, mechanism: Mechanism, all_dirty: bool) -> Answer {
        if self.running.is_some() {
            return Err("a log runs already: stop it first".into());
        }
        let mechanism = match mechanism {
            Mechanism::Auto if table.read().has_hardware_dirty_state() => Mechanism::HardwarePage,
            Mechanism::Auto => Mechanism::WriteProtect,
            chosen => chosen,
        };
        let census = dirty::census(table);
        let started = self.regions.iter_mut().try_for_each(|region| region.start(table, mechanism, all_dirty));
        self.running = Some((mechanism, census));
        self.hashed = false;
        if let Err(sentence) = started {
            self.stop(table)?;
            return Err(sentence);
        }
        Ok(Reply::Started { mechanism, census })
    }

    fn stop(&mut self, table: &TableLock) -> Answer {
        let (_, before) = self.running.take().ok_or("no log runs")?;
        self.regions.iter_mut().for_each(|region| region.stop(table));
        self.moving.iter_mut().for_each(Moving::log_has_ended);
        operations::collapse(table, self.regions.iter().map(|region| &region.range))?;
        Ok(Reply::Stopped { before, after: dirty::census(table) })
    }

    /// Sends what was written, and counts it.
    fn take_pages(&mut self, table: &TableLock, number: u32, look_first: bool) -> Result<u64, Why> {
        let (mechanism, _) = self.running.ok_or("no log runs: start one first")?;
        // Before any bit is taken: what devices may be writing counts as written.
        mediation::report_in_flight(&table.read());
        let Self { port, regions, drops, chunk, .. } = self;
        let mut pages = 0;
        for region in regions {
            pages +=
                region.harvest(table, look_first, drops, |address, bits| chunk.push(port, number, address, bits))?;
            if mechanism == Mechanism::HardwareBlock {
                region.refine(table);
            }
        }
        chunk.flush(port, number);
        Ok(pages)
    }

    fn harvest(&mut self, table: &TableLock, number: u32, look_first: bool) -> Answer {
        let pages = self.take_pages(table, number, look_first)?;
        Ok(Reply::Harvested { pages, table_bytes: table_bytes(), permission_faults: sum(Event::FaultPermission) })
    }

    fn audit(&mut self, table: &TableLock, number: u32) -> Answer {
        let was_frozen = table.read().is_frozen();
        // With the lock for writing nobody is in a fault handler: every mark of every store so far is there.
        operations::freeze(table)?;
        let result = self.take_pages(table, number, false).map(|pages| {
            let mut findings = Findings::default();
            for region in &mut self.regions {
                // SAFETY: frozen above, thawed below.
                unsafe { audit::compare(region, &mut findings) };
            }
            (pages, findings)
        });
        if !was_frozen {
            operations::thaw(table);
        }
        let (pages, findings) = result?;
        let findings = core::mem::replace(&mut self.hashed, true).then_some(findings);
        let (table_bytes, permission_faults) = (table_bytes(), sum(Event::FaultPermission));
        Ok(Reply::Audited { pages, table_bytes, permission_faults, findings })
    }

    fn protect(&mut self, start: u64, end: u64, policy: Policy) -> Answer {
        let range = PhysRange::new(start, end).filter(|range| {
            let whole = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE) && !range.is_empty();
            let covers = |ram: &Region| ram.range.start().0 <= start && end <= ram.range.end().0;
            whole && self.regions.iter().any(covers)
        });
        let Some(range) = range else {
            return Err(Why::NoRange { start, end });
        };
        let policy = match policy {
            Policy::Allow => None,
            Policy::Report => Some(policy::Policy::Report),
            Policy::Deny => Some(policy::Policy::Deny),
        };
        match mediation::set_policy(range, policy)? {
            Set::Done => Ok(Reply::Done),
            Set::NoRoom => Err(Why::NoRoom),
            Set::InFlight => Err("a device has been given a part of this range to write to, so stores there can't be \
                                  denied now: try again, or take the device from the guest first"
                .into()),
        }
    }

    fn stores(&mut self, number: u32) -> Answer {
        watch::rearm()?;
        while let Some(watch::Store { ipa, va, pc, vbar, cpu, denied }) = watch::take() {
            self.port.send(number, Reply::Store { ipa, va, pc, vbar, cpu, denied });
        }
        Ok(Reply::Stores { lost: watch::take_lost() })
    }

    fn no_log_runs(&self) -> Result<(), Why> {
        match self.running {
            Some(_) => Err("a log runs, whose leaves stay as they are: stop it first".into()),
            None => Ok(()),
        }
    }

    /// Sends the events that there are now. More come meanwhile; they are for the next time.
    fn events(&mut self, number: u32) -> Answer {
        if !events::is_kept() {
            return Err("this hypervisor keeps no events: build it with the feature `events`".into());
        }
        const RECORDS: usize = MAX_WORDS / RECORD;
        let mut left = events::BYTES as usize / RECORD;
        while left > 0 {
            let mut bytes = [0; RECORDS * RECORD];
            let used = events::take(&mut bytes);
            let Some(bytes) = bytes.get(..used).filter(|bytes| !bytes.is_empty()) else { break };
            self.port.send(number, Reply::Events(bytes));
            left = left.saturating_sub(used / RECORD);
        }
        Ok(Reply::EventsLeft { lost: events::lost() })
    }

    fn storm(&mut self, table: &TableLock) -> Answer {
        self.no_log_runs()?;
        self.regions.iter().try_for_each(|region| operations::split(table, region.range, LeafSize::Page))?;
        operations::collapse(table, self.regions.iter().map(|region| &region.range))?;
        Ok(Reply::Done)
    }

    fn counters(&mut self, number: u32) -> Reply<'static> {
        for &event in Event::ALL {
            self.port.send(number, Reply::Counter { name: event.name(), value: sum(event) });
        }
        Reply::Done
    }

    /// Waits for so long, for the guest's end, or for the next request. Says whether the guest has ended.
    fn wait(&mut self, milliseconds: u32) -> bool {
        let start = read_register!("cntpct_el0");
        let ticks = read_register!("cntfrq_el0") / 1000 * u64::from(milliseconds);
        while read_register!("cntpct_el0").wrapping_sub(start) < ticks && !guest_has_ended() && !self.port.has_input() {
            firmware::park_if_stopped();
            mediation::poll();
            cpu::pause();
        }
        guest_has_ended()
    }
}

/// Makes mediated devices quiet, all or none.
fn quiesce(table: &TableLock) -> Answer {
    hold::quiesce_all(table).map(done).map_err(|device| {
        if !table.read().is_frozen() {
            hold::resume_all();
        }
        device.into()
    })
}

/// Lets mediated devices go on, or has them do so by way of the states that a save keeps.
fn resume(table: &TableLock, restored: bool) -> Answer {
    if table.read().is_frozen() {
        return Err("the guest is frozen, and devices would write its memory: thaw it first".into());
    }
    let mut result = Ok(());
    let again = |address, state: &[u8]| hold::restore(address, state).inspect_err(|_| hold::lose(address));
    if restored && !hold::save(|address, state| result = result.and(again(address, state))) {
        return Err("a device is not quiet: quiesce them first".into());
    }
    hold::resume_all();
    Ok(result.map(done)?)
}

fn done((): ()) -> Reply<'static> {
    Reply::Done
}

/// How often something has happened on all CPUs.
fn sum(event: Event) -> u64 {
    cpu::all().fold(0, |sum, area| sum.wrapping_add(area.cpu.stage2.get(event)))
}

/// Bytes of the guest's tables: every one that the engine took and did not give back.
fn table_bytes() -> u64 {
    sum(Event::FrameAllocated).wrapping_sub(sum(Event::FrameFreed)).wrapping_mul(PAGE)
}

/// Where the guest's memory lies.
struct Memory<'r>(&'r [Region]);

impl fmt::Display for Memory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, Region { range, .. })| {
            let separator = if index == 0 { "" } else { " and " };
            write!(f, "{separator}{range:?}")
        })
    }
}
