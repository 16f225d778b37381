//! A guest that is sent to the store, or taken from it.

use crate::el2::base::registers::read_register;
use crate::el2::base::{console, firmware, refusal::Refusal, totals};
use crate::el2::guest_memory::{self, table_lock::TableLock};
use crate::el2::manager::dirty::{Drops, Region};
use crate::el2::manager::presence::guest_has_ended;
use crate::el2::manager::why::Why;
use crate::el2::mediation::{self, hold};
use crate::el2::saving::load::{Loader, Place};
use crate::el2::saving::pages::{Room, hash_all};
use crate::el2::saving::send::{Counted, Sender, Way};
use crate::el2::saving::store::{Failure, Store};
use crate::el2::saving::{self, Stopped, facts};
use alloc::boxed::Box;
use alloc::vec::Vec;
use hypervisor::machine::Machine;
use hypervisor::options::Options;
use hypervisor::range::PhysRange;
use hypervisor_abi::manager::{Downtime, Reply, Request, Share};
use hypervisor_abi::saved::{BLOCK_BYTES, Fact};
use stage2::PAGE_SIZE;

/// What has become of the guest.
enum Guest {
    /// It runs here. Whether all of its pages are in the file, but for those that the log has found dirty since.
    Runs { sent: bool },
    /// It was stopped, and all of it is in the file.
    Sent { _stopped: Stopped },
    /// It comes from the store.
    Comes(Loader),
    /// It goes on elsewhere.
    Gone,
}

/// The store, and what is on its way.
pub struct Moving {
    store: Store,
    room: Room,
    facts: Vec<Fact>,
    sender: Box<Sender>,
    guest: Guest,
}

impl Moving {
    /// Takes the store at `registers` into use.
    ///
    /// # Errors
    ///
    /// A sentence: the device does not work, or there is no memory.
    pub fn new(
        machine: &Machine,
        options: &Options,
        memory: &[PhysRange],
        withheld: u64,
        registers: PhysRange,
    ) -> Result<Self, Refusal> {
        let store = Store::open(registers)?;
        let room = Room::allocate().ok_or_else(|| Refusal("there is no memory left for the store's pages".into()))?;
        let facts = facts::of(machine, options, memory, withheld);
        let guest = if options.resume { Guest::Comes(Loader::new()) } else { Guest::Runs { sent: false } };
        log::info!("manager: the store is the virtio disk at {registers}");
        Ok(Self { store, room, facts, sender: Box::new(Sender::new()), guest })
    }

    /// Why a request that is not this one's must not be answered now, if so.
    pub fn refuses(&self, request: &Request) -> Option<&'static str> {
        use Request::{
            Audit, Churn, Counters, Events, Freeze, Go, Harvest, Hello, Protect, Quiesce, Release, Resume, Start, Stop,
            Storm, Thaw, Wait,
        };
        match (&self.guest, request) {
            (_, Hello { .. } | Wait { .. } | Counters | Events) | (Guest::Sent { .. }, Go | Release) => None,
            (Guest::Runs { sent: true }, Harvest { .. } | Audit) => {
                Some("what the log finds is being sent: send the rest first, or stop the log")
            }
            (Guest::Sent { .. }, _) => Some("the guest was stopped to be sent: let it go on, or release it"),
            (Guest::Gone, _) => Some("the guest goes on elsewhere"),
            (
                Guest::Comes(_),
                Start { .. }
                | Harvest { .. }
                | Audit
                | Stop
                | Protect { .. }
                | Freeze
                | Thaw
                | Quiesce
                | Resume { .. }
                | Storm
                | Churn { .. },
            ) => Some("the guest is not here yet"),
            _ => None,
        }
    }

    /// The log has ended: what is written from now on is not known.
    pub fn log_has_ended(&mut self) {
        if let Guest::Runs { sent } = &mut self.guest {
            *sent = false;
        }
    }

    /// Sends pages, and with `stop` everything else.
    pub fn send(
        &mut self,
        table: &TableLock,
        regions: &mut [Region],
        drops: &mut Drops,
        (logs, share, stop): (bool, Share, bool),
    ) -> Result<Reply<'static>, Why> {
        let Guest::Runs { sent } = self.guest else {
            return Err("there is no guest here that runs and could be sent".into());
        };
        if guest_has_ended() {
            return Err("the guest has turned the machine off".into());
        }
        if !logs && (share == Share::Dirty || !stop) {
            return Err("no log runs, so pages written meanwhile would be missed: start one first".into());
        }
        if share == Share::Dirty && !sent {
            return Err("all pages have to be sent first".into());
        }
        // If this fails, the file is of no use, and the guest goes on.
        self.guest = Guest::Runs { sent: false };
        if !stop {
            let mut counted = Counted::default();
            self.send_pages(table, regions, drops, (share, false), &mut counted)?;
            self.guest = Guest::Runs { sent: true };
            let left = regions.iter_mut().try_fold(0, |sum, region| Ok::<u64, Why>(sum + region.dirty(table)?))?;
            return Ok(self.sent(counted, Some(left), None));
        }
        let began = read_register!("cntpct_el0");
        let stopped = saving::stop_all().map_err(Failure::from)?;
        let quiet = hold::quiesce_all(table).map_err(Why::from);
        match quiet.and_then(|()| self.send_rest(table, regions, drops, share, &stopped)) {
            Ok((counted, hash_ticks, hash)) => {
                let ticks = read_register!("cntpct_el0").wrapping_sub(began);
                let downtime = Downtime { ticks, hash_ticks, frequency: read_register!("cntfrq_el0"), hash };
                // Up to here the console had what the guest wrote; from here on it has not.
                console::print(format_args!("saved"));
                self.guest = Guest::Sent { _stopped: stopped };
                Ok(self.sent(counted, None, Some(downtime)))
            }
            Err(why) => {
                drop(stopped);
                hold::resume_all();
                Err(why)
            }
        }
    }

    fn sent(&self, counted: Counted, left: Option<u64>, stopped: Option<Downtime>) -> Reply<'static> {
        let Counted { pages, zero_pages } = counted;
        Reply::Sent { pages, zero_pages, end: self.sender.end(), left, stopped }
    }

    fn send_pages(
        &mut self,
        table: &TableLock,
        regions: &mut [Region],
        drops: &mut Drops,
        (share, stopped): (Share, bool),
        counted: &mut Counted,
    ) -> Result<(), Why> {
        // Pages here and there are gathered first: fewer requests for the device.
        let still = stopped && share == Share::All;
        let mut way = Way { store: &mut self.store, room: &mut self.room, still };
        match share {
            Share::All => Ok(send_all(&mut self.sender, &mut way, &self.facts, regions, counted)?),
            Share::Dirty => send_dirty(&mut self.sender, &mut way, table, regions, drops, counted),
        }
    }

    /// Sends what is left of a guest that stands still. Returns what was sent, the hash of all memory, and the ticks that it took.
    fn send_rest(
        &mut self,
        table: &TableLock,
        regions: &mut [Region],
        drops: &mut Drops,
        share: Share,
        stopped: &Stopped,
    ) -> Result<(Counted, u64, u64), Why> {
        let mut counted = Counted::default();
        self.send_pages(table, regions, drops, (share, true), &mut counted)?;
        let began = read_register!("cntpct_el0");
        // SAFETY: the guest's RAM; its CPUs stand still, and its devices are quiet.
        let hash = unsafe { hash_all(regions.iter().map(|region| region.range), pause) };
        let hash_ticks = read_register!("cntpct_el0").wrapping_sub(began);
        let mut way = Way { store: &mut self.store, room: &mut self.room, still: true };
        self.sender.end_with(&mut way, stopped, hash)?;
        Ok((counted, hash_ticks, hash))
    }

    /// Takes in what there is in the store up to `end`.
    pub fn load(&mut self, regions: &[Region], end: u64) -> Result<Reply<'static>, Why> {
        let Guest::Comes(loader) = &mut self.guest else {
            return Err("this machine was not started to take a guest in: start it with resume=on".into());
        };
        let memory = guest_memory::guest_memory().ok_or("the guest has no memory yet")?;
        let mut place = Place { store: &mut self.store, room: &mut self.room, memory, facts: &self.facts };
        // SAFETY: the guest has not started; what else reads its memory is refused until then.
        let pages = unsafe { loader.load(&mut place, end, regions.iter().map(|region| region.range), pause) }?;
        Ok(Reply::Loaded { pages, hash: loader.hash() })
    }

    /// Lets the guest go on, or starts it.
    pub fn go(&mut self) -> Result<Reply<'static>, Why> {
        match &self.guest {
            Guest::Sent { .. } => console::print(format_args!("goes on")),
            Guest::Comes(loader) if loader.hash().is_some() => {
                saving::start(|| console::print(format_args!("goes on"))).map_err(Failure::from)?;
            }
            Guest::Comes(_) => return Err("the guest has not come whole yet".into()),
            Guest::Runs { .. } => return Err("the guest runs already".into()),
            Guest::Gone => return Err("the guest goes on elsewhere".into()),
        }
        // A guest that was stopped goes on here; its devices after it, for they wait for that.
        self.guest = Guest::Runs { sent: false };
        hold::resume_all();
        Ok(Reply::Done)
    }

    /// The guest goes on elsewhere: it never runs here again.
    pub fn release(&mut self) -> Result<Reply<'static>, Why> {
        match core::mem::replace(&mut self.guest, Guest::Gone) {
            // It stands still for ever.
            Guest::Sent { _stopped } => core::mem::forget(_stopped),
            Guest::Gone => {}
            other => {
                self.guest = other;
                return Err("the guest was not stopped to be sent".into());
            }
        }
        Ok(Reply::Done)
    }

    /// Whether the guest is yet to come.
    pub fn awaits_guest(&self) -> bool {
        matches!(self.guest, Guest::Comes(_))
    }

    /// Whether the guest was released, so that the machine ends.
    pub fn is_gone(&self) -> bool {
        matches!(self.guest, Guest::Gone)
    }
}

/// Ends the machine of a guest that goes on elsewhere.
pub fn end() -> ! {
    totals::print();
    console::print(format_args!("end: {}", firmware::End::Saved.name()));
    firmware::stop(firmware::End::Saved)
}

/// What else the management core has to do while it sends and loads.
fn pause() {
    firmware::park_if_stopped();
    mediation::poll();
}

fn send_all(
    sender: &mut Sender,
    way: &mut Way<'_>,
    facts: &[Fact],
    regions: &[Region],
    counted: &mut Counted,
) -> Result<(), Failure> {
    sender.begin(way, facts)?;
    for region in regions {
        let first = region.range.start().0 / BLOCK_BYTES;
        for page in first..first + region.range.pages() {
            if page % 64 == 0 {
                pause();
            }
            // SAFETY: the guest's RAM; it stands still if `way` says so, from before this to its end.
            unsafe { sender.page(way, counted, page) }?;
        }
    }
    // SAFETY: as above.
    unsafe { sender.flush(way) }
}

fn send_dirty(
    sender: &mut Sender,
    way: &mut Way<'_>,
    table: &TableLock,
    regions: &mut [Region],
    drops: &mut Drops,
    counted: &mut Counted,
) -> Result<(), Why> {
    mediation::report_in_flight(&table.read());
    for region in regions {
        let range = region.range;
        let mut result = Ok(());
        region.harvest(table, false, drops, |address, bits| {
            pause();
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                let address = address + bit * PAGE_SIZE;
                if result.is_ok() && range.contains(stage2::Ipa(address)) {
                    // SAFETY: the guest's RAM; it stands still if `way` says so, from before this to its end. What is written
                    // from the harvest on is in the next one.
                    result = unsafe { sender.page(way, counted, address / BLOCK_BYTES) };
                }
            }
        })?;
        result?;
    }
    // SAFETY: as above.
    Ok(unsafe { sender.flush(way) }?)
}
