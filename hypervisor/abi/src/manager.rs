//! What the host tool and the management core say to each other.
//!
//! The host asks, the management core answers: some answers are a series, which ends with an answer that
//! [is last](Reply::is_last). A message is a [`postcard`] value with a CRC-32 behind it, in COBS framing: 0 ends a frame
//! and stands nowhere else, so that a reader that comes late, or reads rubbish, is right again at the next 0. What cannot be
//! understood is answered with [`Reply::Refused`] and number 0, and changes nothing.
//!
//! The host confirms each message of a series but the last with one byte 0, an empty frame: the core waits for it when
//! several are on their way, since QEMU drops what a console sends faster than the host reads.

mod frame;

pub use frame::{Frame, Frames, decode, encode};

use serde::{Deserialize, Serialize};

/// The protocol's version. Hosts and hypervisors of different versions do not talk.
pub const VERSION: u16 = 6;

/// The most bytes that a message may take before it is framed.
pub const MAX_MESSAGE: usize = 4096;
/// The most bytes that a frame may take, its 0 included: COBS adds a byte for each 254.
pub const MAX_FRAME: usize = MAX_MESSAGE + MAX_MESSAGE / 254 + 2;
/// The most bytes of words that one [`Reply::Pages`] carries.
pub const MAX_WORDS: usize = 4000;
/// Bytes of one word in [`Reply::Pages`].
pub const WORD_BYTES: usize = 16;

/// A message and its number. An answer has its request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<T> {
    /// Chosen by the host, not 0.
    pub number: u32,
    /// What is asked or answered.
    pub body: T,
}

/// How writes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mechanism {
    /// By hardware where every CPU can, otherwise by write protection.
    Auto,
    /// Blocks are protected whole and split on the first write.
    WriteProtect,
    /// All blocks are split to pages at the start and protected.
    WriteProtectEager,
    /// Hardware marks pages; all blocks are split at the start.
    HardwarePage,
    /// Hardware marks blocks of 2 MiB; those that are written again and again are split to pages.
    HardwareBlock,
}

/// What the guest may do to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Anything.
    Allow,
    /// A store is logged, then let through. The page stays open until reports are next asked for.
    Report,
    /// A store is logged and aborts. Stronger than [`Policy::Report`].
    Deny,
}

/// Which pages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// All, into a file that begins anew.
    All,
    /// Those that the log has found dirty since it was asked last, behind what the file has.
    Dirty,
}

/// What the host can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Which memory and what abilities there are: answered by [`Reply::Memory`] for each range, then [`Reply::Welcome`].
    Hello {
        /// [`VERSION`] of the host.
        version: u16,
    },
    /// Starts the log of all of the guest's memory: [`Reply::Started`].
    Start {
        /// How.
        mechanism: Mechanism,
        /// Every page counts as dirty at first.
        all_dirty: bool,
    },
    /// What was written since the last harvest, while the guest runs: [`Reply::Pages`], then [`Reply::Harvested`].
    Harvest {
        /// In two steps: which pages are dirty, then just these are cleared.
        look_first: bool,
    },
    /// The same with the guest frozen; every page is hashed and compared with the last audit: [`Reply::Pages`], then
    /// [`Reply::Audited`].
    Audit,
    /// Ends the log and makes leaves large again: [`Reply::Stopped`].
    Stop,
    /// Sets what the guest may do to whole pages: [`Reply::Done`].
    Protect {
        /// First address.
        start: u64,
        /// First address past the range.
        end: u64,
        /// What it may do.
        policy: Policy,
    },
    /// The stores that met a policy since this was asked last: [`Reply::Store`], then [`Reply::Stores`]. Pages that were
    /// opened by a report are protected again.
    Stores,
    /// Stops all the guest's CPUs at their next access to memory: [`Reply::Done`].
    Freeze,
    /// Lets them go on: [`Reply::Done`].
    Thaw,
    /// Makes mediated devices quiet, for a save or a log's last harvest: what they have written is in the log, they write nothing
    /// more, and the guest's accesses to them wait: [`Reply::Done`].
    Quiesce,
    /// Lets them go on where they were; the guest is not frozen: [`Reply::Done`].
    Resume {
        /// Each device by way of the state that a save keeps of it.
        restored: bool,
    },
    /// Splits all of the guest's memory to pages and collapses it again: [`Reply::Done`].
    Storm,
    /// Splits, protects and collapses ranges of the guest's memory at random, so many times: [`Reply::Done`].
    Churn {
        /// What the choice comes from.
        seed: u64,
        /// How often.
        changes: u32,
    },
    /// What the engine has done on all CPUs: [`Reply::Counter`], then [`Reply::Done`].
    Counters,
    /// The engine's events so far that were not asked for yet, where the hypervisor keeps them (its feature `events`):
    /// [`Reply::Events`], then [`Reply::EventsLeft`].
    Events,
    /// Answers after so many milliseconds, or as soon as the guest has ended: [`Reply::Waited`].
    Wait {
        /// Milliseconds.
        milliseconds: u32,
    },
    /// Writes pages of the guest's memory to the store, as the format of `hypervisor_abi::saved` has them: [`Reply::Sent`].
    Send {
        /// Which.
        share: Share,
        /// The guest is stopped first, and stays so; its state and the file's end follow the pages.
        stop: bool,
    },
    /// Takes the memory and the state of a guest from the store, on a machine that was started with `resume=on`, from where
    /// it was when this was asked last: [`Reply::Loaded`].
    Load {
        /// Bytes of the file that there are by now.
        end: u64,
    },
    /// Lets the guest run: one that was loaded whole, or one that was stopped to be sent: [`Reply::Done`].
    Go,
    /// Ends the machine of a guest that was stopped to be sent: it goes on elsewhere: [`Reply::Done`].
    Release,
    /// The host wants nothing more; a guest that has ended may end the machine: [`Reply::Done`].
    Bye,
}

/// Leaves and tables of the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Leaves of 1 GiB, 32 MiB, 2 MiB, 64 KiB, 4 KiB.
    pub leaves: [u64; 5],
    /// Bytes of all tables.
    pub table_bytes: u64,
}

/// What a round of an audit has found, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Pages whose contents changed since the last audit.
    pub changed: u64,
    /// Pages that were reported since.
    pub reported: u64,
    /// Changed, but not reported.
    pub missed: u64,
    /// Reported, but not changed: written with what they held before, or never written.
    pub over_reported: u64,
    /// Address of the first missed page.
    pub first_missed: Option<u64>,
}

/// What it took to send the last part of a guest, in ticks of CNTPCT_EL0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downtime {
    /// From the first CPU that was stopped to the last byte of the file.
    pub ticks: u64,
    /// Of these, for the hash of all memory.
    pub hash_ticks: u64,
    /// Ticks in a second.
    pub frequency: u64,
    /// The hash of all memory (`hash` of `hypervisor_abi::saved::End`).
    pub hash: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply<'a> {
    /// A range of the guest's memory.
    Memory {
        /// First address.
        start: u64,
        /// First address past the range.
        end: u64,
    },
    /// The last answer to [`Request::Hello`].
    Welcome {
        /// [`VERSION`] of the hypervisor.
        version: u16,
        /// The guest's CPUs.
        cpus: u32,
        /// Whether hardware can keep dirty state.
        hardware_dirty: bool,
        /// The level of FEAT_BBM that sizes are changed by.
        bbm: u8,
    },
    /// The log runs.
    Started {
        /// How: never [`Mechanism::Auto`].
        mechanism: Mechanism,
        /// Before.
        census: Census,
    },
    /// Words of the dirty bitmap, [`WORD_BYTES`] bytes each, little-endian: the address of the page that bit 0 stands for,
    /// then 64 pages' bits. [`words`] reads them. All pages here are of 4 KiB, whatever the granule of the guest's table.
    Pages(#[serde(borrow)] &'a [u8]),
    /// The last answer to [`Request::Harvest`].
    Harvested {
        /// Dirty pages.
        pages: u64,
        /// Bytes of all tables now.
        table_bytes: u64,
        /// Stage-2 permission faults of all CPUs since the machine started.
        permission_faults: u64,
    },
    /// The last answer to [`Request::Audit`]. There are no findings the first time: it only hashes.
    Audited {
        /// Dirty pages of the harvest that belongs to this.
        pages: u64,
        /// Bytes of all tables now.
        table_bytes: u64,
        /// Stage-2 permission faults of all CPUs since the machine started.
        permission_faults: u64,
        /// What was found.
        findings: Option<Findings>,
    },
    /// The log has ended.
    Stopped {
        /// Before it started.
        before: Census,
        /// Now.
        after: Census,
    },
    /// A store that met a policy.
    Store {
        /// Intermediate physical address.
        ipa: u64,
        /// Virtual address.
        va: u64,
        /// Address of the instruction.
        pc: u64,
        /// VBAR_EL1: where the guest's kernel has its vectors, and so where it is.
        vbar: u64,
        /// The CPU's affinity fields of MPIDR_EL1.
        cpu: u64,
        /// Whether it was stopped.
        denied: bool,
    },
    /// The last answer to [`Request::Stores`].
    Stores {
        /// Stores that there was no room for.
        lost: u64,
    },
    /// Records of the engine's event log ([`crate::events`]), in the order of the events.
    Events(#[serde(borrow)] &'a [u8]),
    /// The last answer to [`Request::Events`].
    EventsLeft {
        /// Events that there was no room for: the log has a hole.
        lost: u64,
    },
    /// How often something has happened.
    Counter {
        /// What.
        #[serde(borrow)]
        name: &'a str,
        /// How often, on all CPUs together.
        value: u64,
    },
    /// The answer to [`Request::Wait`].
    Waited {
        /// Whether the guest has turned the machine off, or reset it: it waits for [`Request::Bye`].
        ended: bool,
    },
    /// The answer to [`Request::Send`].
    Sent {
        /// Pages that were sent.
        pages: u64,
        /// Pages that are zero: they were named only.
        zero_pages: u64,
        /// Bytes of the file now.
        end: u64,
        /// Pages that the log has found dirty meanwhile; nothing if no log runs, or the guest is stopped.
        left: Option<u64>,
        /// What it took while the guest was stopped, once it was.
        stopped: Option<Downtime>,
    },
    /// The answer to [`Request::Load`].
    Loaded {
        /// Pages that were read.
        pages: u64,
        /// The hash of all memory, once all has come: it is what the file's end says.
        hash: Option<u64>,
    },
    /// Done.
    Done,
    /// Not done; nothing has changed unless the sentence says so.
    Refused(#[serde(borrow)] &'a str),
}

impl Reply<'_> {
    /// Whether nothing more comes for the request.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        !matches!(
            self,
            Self::Memory { .. } | Self::Pages(_) | Self::Store { .. } | Self::Counter { .. } | Self::Events(_)
        )
    }
}

/// The words of [`Reply::Pages`]: the address of the first page, and 64 pages' bits.
pub fn words(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    bytes.chunks_exact(WORD_BYTES).filter_map(|word| {
        let (address, bits) = word.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*address), u64::from_le_bytes(*bits.first_chunk()?)))
    })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn words_are_pairs() {
        let bytes: Vec<u8> = [0x4000_0000u64, 5, 0x4004_0000, 6].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(words(&bytes).collect::<Vec<_>>(), [(0x4000_0000, 5), (0x4004_0000, 6)]);
        assert_eq!(words(&bytes[..31]).count(), 1);
    }
}
