//! What the host tool and the management core say to each other.
//!
//! The host asks, the management core answers: some answers are a series, which ends with an answer that
//! [is last](Reply::is_last). A message is a [`postcard`] value with a CRC-32 behind it, in COBS framing: 0 ends a frame
//! and stands nowhere else, so that whoever comes late, or reads rubbish, is right again at the next 0. What cannot be
//! understood is answered with [`Reply::Refused`] and number 0, and changes nothing.
//!
//! The host confirms each message of a series but the last with one byte 0, an empty frame: the core waits for it when
//! several are on their way, since QEMU drops what a console sends faster than the host reads.

use crc::{CRC_32_ISO_HDLC, Crc};
use serde::{Deserialize, Serialize};

/// The protocol's version. Hosts and hypervisors of different versions do not talk.
pub const VERSION: u16 = 3;

/// The most bytes that a message may take before it is framed.
pub const MAX_MESSAGE: usize = 4096;
/// The most bytes that a frame may take, its 0 included: COBS adds a byte for each 254.
pub const MAX_FRAME: usize = MAX_MESSAGE + MAX_MESSAGE / 254 + 2;
/// The most bytes of words that one [`Reply::Pages`] carries.
pub const MAX_WORDS: usize = 4000;
/// Bytes of one word in [`Reply::Pages`].
pub const WORD_BYTES: usize = 16;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

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
    /// then 64 pages' bits. [`words`] reads them.
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

/// Frames a message: the bytes to send, 0 at the end. `None` if it is longer than [`MAX_MESSAGE`].
pub fn encode<'f, T: Serialize>(message: &Message<T>, frame: &'f mut [u8; MAX_FRAME]) -> Option<&'f [u8]> {
    let mut plain = [0; MAX_MESSAGE];
    let plain = postcard::to_slice_crc32(message, &mut plain, CRC.digest()).ok()?;
    let used = cobs::try_encode(plain, frame).ok()?;
    *frame.get_mut(used)? = 0;
    frame.get(..=used)
}

/// Unpacks a frame without its 0, in place. `None` unless every bit of it is right.
pub fn decode<'f, T: Deserialize<'f>>(frame: &'f mut [u8]) -> Option<Message<T>> {
    let used = cobs::decode_in_place(frame).ok()?;
    postcard::from_bytes_crc32(frame.get(..used)?, CRC.digest()).ok()
}

/// Puts bytes together to frames, however they come.
#[derive(Debug)]
pub struct Frames {
    bytes: [u8; MAX_FRAME],
    used: usize,
    /// The frame is longer than any can be: the rest, up to its 0, is not looked at.
    overlong: bool,
}

/// What a byte has completed.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'f> {
    /// Nothing.
    Unfinished,
    /// A frame, without its 0. It need not be right.
    Whole(&'f mut [u8]),
    /// A frame that was too long.
    Overlong,
}

impl Frames {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; MAX_FRAME], used: 0, overlong: false }
    }

    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Frame<'_> {
        if byte == 0 {
            let used = core::mem::take(&mut self.used);
            return match (core::mem::take(&mut self.overlong), self.bytes.get_mut(..used)) {
                // Two zeros in a row: who connects may send one to end what came before.
                (false, Some([])) => Frame::Unfinished,
                (false, Some(frame)) => Frame::Whole(frame),
                _ => Frame::Overlong,
            };
        }
        match self.bytes.get_mut(self.used) {
            Some(slot) => {
                *slot = byte;
                self.used += 1;
            }
            None => self.overlong = true,
        }
        Frame::Unfinished
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn frame<T: Serialize>(number: u32, body: T) -> Vec<u8> {
        encode(&Message { number, body }, &mut [0; MAX_FRAME]).unwrap().to_vec()
    }

    /// The requests in a stream, and how many frames were not understood.
    fn requests(stream: &[u8]) -> (Vec<Message<Request>>, usize) {
        let (mut frames, mut good, mut bad) = (Frames::new(), Vec::new(), 0);
        for &byte in stream {
            match frames.push(byte) {
                Frame::Unfinished => {}
                Frame::Overlong => bad += 1,
                Frame::Whole(frame) => match decode(frame) {
                    Some(message) => good.push(message),
                    None => bad += 1,
                },
            }
        }
        (good, bad)
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            any::<u16>().prop_map(|version| Request::Hello { version }),
            any::<bool>().prop_map(|all_dirty| Request::Start { mechanism: Mechanism::HardwareBlock, all_dirty }),
            any::<(u64, u64)>().prop_map(|(start, end)| Request::Protect { start, end, policy: Policy::Deny }),
            any::<u32>().prop_map(|milliseconds| Request::Wait { milliseconds }),
            Just(Request::Audit),
            Just(Request::Bye),
        ]
    }

    #[test]
    fn the_longest_replies_fit() {
        let sentence = "x".repeat(MAX_WORDS);
        for reply in [Reply::Pages(&[0x5a; MAX_WORDS]), Reply::Pages(&[0; MAX_WORDS]), Reply::Refused(&sentence)] {
            let mut framed = frame(7, reply);
            assert_eq!(framed.pop(), Some(0));
            assert_eq!(decode(&mut framed), Some(Message { number: 7, body: reply }));
        }
        let message = Message { number: 1, body: Reply::Pages(&[1; MAX_MESSAGE]) };
        assert_eq!(encode(&message, &mut [0; MAX_FRAME]), None);
    }

    #[test]
    fn words_are_pairs() {
        let bytes: Vec<u8> = [0x4000_0000u64, 5, 0x4004_0000, 6].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(words(&bytes).collect::<Vec<_>>(), [(0x4000_0000, 5), (0x4004_0000, 6)]);
        assert_eq!(words(&bytes[..31]).count(), 1);
    }

    #[test]
    fn an_overlong_frame_is_skipped() {
        let mut stream = std::vec![1; 3 * MAX_FRAME];
        stream.push(0);
        stream.extend(frame(1, Request::Audit));
        assert_eq!(requests(&stream), (Vec::from([Message { number: 1, body: Request::Audit }]), 1));
    }

    proptest! {
        #[test]
        fn messages_arrive_as_they_were_sent(sent in proptest::collection::vec(request(), 0..20)) {
            let stream: Vec<u8> = sent.iter().flat_map(|&body| frame(3, body)).collect();
            let (got, bad) = requests(&stream);
            prop_assert_eq!(bad, 0);
            prop_assert_eq!(got.into_iter().map(|message| message.body).collect::<Vec<_>>(), sent);
        }

        /// Rubbish, a frame that is cut short, a flipped bit: the next frame is understood, and nothing is that
        /// was not sent.
        #[test]
        fn the_next_frame_is_always_right(
            rubbish in proptest::collection::vec(any::<u8>(), 0..200),
            cut in any::<prop::sample::Index>(),
            flip in any::<(prop::sample::Index, u8)>(),
            body in request(),
        ) {
            let whole = frame(9, body);
            let mut flipped = whole.clone();
            let at = flip.0.index(flipped.len());
            flipped[at] ^= 1 << (flip.1 % 8);
            let mut stream = rubbish;
            stream.push(0);
            stream.extend(&whole[..cut.index(whole.len())]);
            stream.push(0);
            stream.extend(&flipped);
            stream.push(0);
            stream.extend(&whole);
            let (got, _) = requests(&stream);
            // A length that reaches past the end, or a 0 that is missing, can leave the message what it was.
            prop_assert!(!got.is_empty());
            let expected = Message { number: 9, body };
            prop_assert!(got.iter().all(|message| *message == expected));
        }

        #[test]
        fn no_bytes_panic_a_reader(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let _ = requests(&bytes);
            let mut frames = Frames::new();
            for byte in bytes {
                if let Frame::Whole(frame) = frames.push(byte) {
                    let _ = decode::<Reply<'_>>(frame);
                }
            }
        }
    }
}
