//! The engine's event log of a machine: a file, and the oracle's judgement of it.
//!
//! The file is a header of 32 bytes, then records of 32 bytes each (`stage2_oracle::record`).

use crate::progress::Step;
use anyhow::{Context, Result, ensure};
use stage2_oracle::record::{RECORD, decode};
use stage2_oracle::{Action, Event, Model, Operation, OperationKind, Setup, Stats};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"UNBEVENT";
/// CPUs that the oracle can model, the management core included.
pub const MAX_CPUS: u32 = 5;
/// Records that are replayed at a time.
const PIECE: usize = 1 << 16;
/// Violations that are shown in full.
const SHOWN: usize = 3;

/// What the oracle has to know of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The level of FEAT_BBM that sizes are changed by.
    pub bbm: u8,
    /// Whether hardware keeps dirty state.
    pub hardware_dirty: bool,
    /// All CPUs, the management core included.
    pub cpus: u8,
    /// Events that are missing.
    pub lost: u64,
}

impl Header {
    fn to_bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let (magic, rest) = bytes.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        let (small, lost) = rest.split_at_mut(8);
        small.copy_from_slice(&[self.bbm, u8::from(self.hardware_dirty), self.cpus, 0, 0, 0, 0, 0]);
        for (place, byte) in lost.iter_mut().zip(self.lost.to_le_bytes()) {
            *place = byte;
        }
        bytes
    }

    fn from_bytes(bytes: [u8; RECORD]) -> Option<Self> {
        let [_, small, lost, _] = core::array::from_fn(|word| core::array::from_fn(|byte| bytes[8 * word + byte]));
        let [bbm, hardware_dirty, cpus, ..]: [u8; 8] = small;
        let header = Self { bbm, hardware_dirty: hardware_dirty != 0, cpus, lost: u64::from_le_bytes(lost) };
        (bytes.starts_with(MAGIC) && bbm <= 3 && (1..=MAX_CPUS).contains(&cpus.into())).then_some(header)
    }
}

/// A file of events that is being written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    header: Header,
}

impl Writer {
    /// Begins a file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn begin(path: &Path, header: Header) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        file.write_all(&header.to_bytes())?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    /// Adds records.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn add(&mut self, records: &[u8]) -> Result<()> {
        self.file.write_all(records).with_context(|| format!("can't write {}", self.path.display()))
    }

    /// So many events are missing.
    pub fn lose(&mut self, lost: u64) {
        self.header.lost = lost;
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header.to_bytes())?;
        self.file.flush().with_context(|| format!("can't write {}", self.path.display()))?;
        Ok(self.path)
    }
}

/// What the oracle says.
#[derive(Debug)]
pub struct Judgement {
    /// The machine.
    pub header: Header,
    /// Events.
    pub events: u64,
    /// Calls of the engine.
    pub calls: u64,
    /// Pages that harvests have reported, and how many of them had met a fault since they were reported last: with write
    /// protection, those that the guest has certainly written.
    pub reported: (u64, u64),
    /// What happened, violations included.
    pub stats: Stats,
    /// The first violations, with their histories.
    pub shown: Vec<String>,
}

impl Judgement {
    /// Whether there was something to judge and no rule was broken.
    pub fn is_good(&self) -> bool {
        self.stats.violations == 0 && self.calls > 0
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Self { events, calls, stats, .. } = self;
        format!(
            "oracle: {events} events, {calls} calls, {} descriptor writes, {} broadcast TLBIs, {} invalid windows, \
             violations {}",
            stats.descriptor_writes, stats.broadcasts, stats.invalid_windows, stats.violations
        )
    }
}

/// Lets the oracle judge a file of events.
///
/// # Errors
/// If it can't be read, or is no such file, or its events don't fit together.
pub fn judge(path: &Path) -> Result<Judgement> {
    let step = Step::begin("Replaying the engine's events through the oracle");
    let mut file = BufReader::new(File::open(path).with_context(|| format!("can't read {}", path.display()))?);
    let total = file.get_ref().metadata().map_or(0, |data| data.len()) / RECORD as u64;
    let mut first = [0; RECORD];
    let header = file.read_exact(&mut first).ok().and_then(|()| Header::from_bytes(first));
    let header = header.with_context(|| {
        format!(
            "{} is not a log of events; name a file that `cargo hv linux --oracle --events FILE` has written",
            path.display()
        )
    })?;
    ensure!(
        header.lost == 0,
        "{}: {} events are missing: the host was too slow to take them, so the oracle can't judge the rest",
        path.display(),
        header.lost
    );
    let mut setup = Setup::new(match header.bbm {
        0 => stage2::BbmLevel::Level0,
        1 => stage2::BbmLevel::Level1,
        2 => stage2::BbmLevel::Level2,
        _ => stage2::BbmLevel::Level3,
    });
    (setup.hardware_dirty, setup.pes) = (header.hardware_dirty, header.cpus.into());
    let model = Model::new(setup);
    let (mut events, mut calls, mut reports) = (0, 0, Reports::default());
    let mut inside = [false; MAX_CPUS as usize];
    let mut piece = vec![0; PIECE * RECORD];
    loop {
        let used = read_up_to(&mut file, &mut piece).with_context(|| format!("can't read {}", path.display()))?;
        let bytes = piece.get(..used).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        let records = decode(bytes).with_context(|| format!("{}, from event {events} on", path.display()))?;
        ensure!(
            records.iter().all(|event| event.pe < header.cpus),
            "{}: an event of a CPU that the machine has not",
            path.display()
        );
        for event in &records {
            let Some(inside) = inside.get_mut(usize::from(event.pe)) else { continue };
            let begins = matches!(event.action, Action::Begin(_));
            ensure!(!begins || !*inside, "{}: a call begins inside of another: {event}", path.display());
            *inside = (*inside || begins) && !matches!(event.action, Action::Return { .. });
        }
        calls += records.iter().filter(|event| matches!(event.action, Action::Begin(_))).count() as u64;
        records.iter().for_each(|event| reports.note(event));
        model.replay(&records).with_context(|| format!("{}, from event {events} on", path.display()))?;
        events += records.len() as u64;
        step.detail(&format!("{} % of {total} events", events * 100 / total.max(1)));
    }
    let violations = model.violations();
    let shown = violations.iter().take(SHOWN).map(ToString::to_string).collect();
    step.done(&format!("{events} events"));
    let reported = (reports.pages, reports.after_a_fault);
    Ok(Judgement { header, events, calls, reported, stats: model.stats(), shown })
}

/// Which reported pages have met a fault before.
#[derive(Default)]
struct Reports {
    faulted: HashSet<u64>,
    pages: u64,
    after_a_fault: u64,
}

impl Reports {
    fn note(&mut self, event: &Event) {
        match event.action {
            Action::Begin(Operation { kind: OperationKind::Fault, range: Some(range) }) => {
                self.faulted.insert(range.start().0);
            }
            Action::Pages { start, end } => {
                for page in (start..end).step_by(stage2::PAGE_SIZE as usize) {
                    self.pages += 1;
                    self.after_a_fault += u64::from(self.faulted.remove(&page));
                }
            }
            _ => {}
        }
    }
}

/// Says what the oracle found: the line to standard output, the rest to standard error.
pub fn tell(judgement: &Judgement) {
    for violation in &judgement.shown {
        eprintln!("{violation}");
    }
    if let (1.., faulted) = judgement.reported {
        eprintln!("hv: of {} reported pages, {faulted} had met a fault since their last report", judgement.reported.0);
    }
    println!("{}", judgement.line());
}

fn read_up_to(file: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut used = 0;
    while let Some(rest) = bytes.get_mut(used..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            more => used += more,
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor_abi::events::{Barrier, Call, Invalidation as Tlbi, Record};
    use stage2::{Dsb, Ipa, IpaRange, PhysAddr, Scope, Slot};
    use stage2_oracle::{Form, Invalidation};

    /// The hypervisor's records say what the oracle reads.
    #[test]
    fn both_ends_agree_on_the_format() {
        let slot = Slot { table: PhysAddr(0x4000_1000), index: 511 };
        let range = IpaRange::new(Ipa(0x1000), Ipa(0x3000)).unwrap();
        let tlbi = |form, scope| Action::Tlbi(Invalidation { vmid: 7, form, scope, hint: None, last_level: false });
        let pairs = [
            (Record::load(slot.table.0, 511, 5), Action::Load { slot, value: 5 }),
            (Record::store(slot.table.0, 511, 6), Action::Store { slot, value: 6 }),
            (Record::exchange(slot.table.0, 511, 6, 9), Action::CompareExchange { slot, old: 6, new: 9, found: 6 }),
            (Record::fill(0x5000, 3, 8), Action::Fill { table: PhysAddr(0x5000), first: 3, step: 8 }),
            (Record::barrier(Barrier::IshSt), Action::Dsb(Dsb::IshSt)),
            (Record::barrier(Barrier::Ish), Action::Dsb(Dsb::Ish)),
            (Record::barrier(Barrier::Nsh), Action::Dsb(Dsb::Nsh)),
            (Record::isb(), Action::Isb),
            (Record::tlbi(7, Tlbi::Ipas2E1 { ipa: 0x1000, broadcast: false }), tlbi(Form::Ipa(0x1000), Scope::Local)),
            (
                Record::tlbi(7, Tlbi::Ripas2E1 { base: 0x1000, scale: 2, num: 31 }),
                tlbi(Form::Range { base: 0x1000, scale: 2, num: 31, granule: 12, unit: 12 }, Scope::Broadcast),
            ),
            (Record::tlbi(7, Tlbi::Vaae1 { va: 0xffff_0000 }), tlbi(Form::Va(0xffff_0000), Scope::Local)),
            (Record::tlbi(7, Tlbi::VmallE1 { broadcast: true }), tlbi(Form::VmallE1, Scope::Broadcast)),
            (Record::tlbi(7, Tlbi::VmallS12E1 { broadcast: false }), tlbi(Form::VmallS12E1, Scope::Local)),
            (Record::allocate(0x6000, 16), Action::Allocate { first: PhysAddr(0x6000), frames: 16 }),
            (Record::free(0x6000, 1), Action::Free { first: PhysAddr(0x6000), frames: 1 }),
            (Record::attach(7, 39, 0x6000), Action::Attach { vmid: 7, ipa_bits: 39, root: PhysAddr(0x6000) }),
            (Record::pages(0x1000, 0x2000), Action::Pages { start: 0x1000, end: 0x2000 }),
            (Record::end(true), Action::Return { ok: true }),
            (Record::end(false), Action::Return { ok: false }),
        ];
        let calls = [
            (Call::New, OperationKind::New),
            (Call::Map, OperationKind::Map),
            (Call::Protect, OperationKind::Protect),
            (Call::Split, OperationKind::Split),
            (Call::Collapse, OperationKind::Collapse),
            (Call::Fault, OperationKind::Fault),
            (Call::Start, OperationKind::Start),
            (Call::Harvest, OperationKind::Harvest),
            (Call::Clear, OperationKind::Clear),
            (Call::End, OperationKind::Stop),
            (Call::Freeze, OperationKind::Freeze),
            (Call::Thaw, OperationKind::Thaw),
        ];
        let calls = calls.map(|(call, kind)| {
            (Record::begin(call, Some((0x1000, 0x3000))), Action::Begin(Operation::over(kind, range)))
        });
        let whole = (Record::begin(Call::Freeze, None), Action::Begin(Operation::whole(OperationKind::Freeze)));
        for (record, action) in pairs.into_iter().chain(calls).chain([whole]) {
            let events = decode(&record.by(3).to_bytes()).unwrap();
            assert_eq!((events[0].pe, events[0].action), (3, action));
        }
    }

    #[test]
    fn headers_are_read_as_they_were_written() {
        let header = Header { bbm: 2, hardware_dirty: true, cpus: 5, lost: 77 };
        assert_eq!(Header::from_bytes(header.to_bytes()), Some(header));
        for (at, byte) in [(0, b'X'), (8, 4), (10, 0), (10, 6)] {
            let mut bytes = header.to_bytes();
            bytes[at] = byte;
            assert_eq!(Header::from_bytes(bytes), None);
        }
    }
}
