//! Frames: how a message lies in the bytes of a console.

use crate::manager::{MAX_FRAME, MAX_MESSAGE, Message};
use crc::{CRC_32_ISO_HDLC, Crc};
use serde::{Deserialize, Serialize};

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

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
                // Two zeros in a row: a host that connects may send one to end what came before.
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
    use crate::manager::{MAX_WORDS, Mechanism, Policy, Reply, Request, Share};
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
            any::<bool>().prop_map(|stop| Request::Send { share: Share::Dirty, stop }),
            any::<u64>().prop_map(|end| Request::Load { end }),
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
