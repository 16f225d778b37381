//! Asking the management core.

use anyhow::{Context, Result, bail};
use hypervisor_abi::manager::{Frame, Frames, MAX_FRAME, Message, Reply, Request, decode, encode};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// The machine has ended, or has never begun: nothing more comes.
#[derive(Debug)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the machine has ended")
    }
}

impl std::error::Error for Gone {}

/// The socket, and what was read from it.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    frames: Box<Frames>,
    unread: Vec<u8>,
    number: u32,
}

impl Link {
    /// A link through a socket whose other end is the machine's console.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Box::new(Frames::new()), unread: Vec::new(), number: 0 }
    }

    /// Asks, and calls `each` with all answers, the last one included.
    ///
    /// # Errors
    /// [`Gone`]; the core's sentence, where it refuses; an error of `each`.
    pub fn ask(&mut self, request: Request, mut each: impl FnMut(Reply<'_>) -> Result<()>) -> Result<()> {
        self.number = self.number.wrapping_add(1).max(1);
        let message = Message { number: self.number, body: request };
        let mut frame = [0; MAX_FRAME];
        let frame = encode(&message, &mut frame).context("a request is longer than a message may be")?;
        self.stream.write_all(frame).map_err(|_| Gone)?;
        let expected = self.number;
        loop {
            let (mut last, mut ends_series) = (false, false);
            self.next(|message| {
                ends_series = message.body.is_last();
                if message.number == 0 {
                    bail!("the management core did not understand {request:?}");
                }
                // Answers to something that was given up are not for this one.
                if message.number != expected {
                    return Ok(());
                }
                last = message.body.is_last();
                match message.body {
                    Reply::Refused(sentence) => bail!("the management core refuses: {sentence}"),
                    reply => each(reply),
                }
            })?;
            if last {
                return Ok(());
            }
            if !ends_series {
                self.stream.write_all(&[0]).map_err(|_| Gone)?;
            }
        }
    }

    /// Reads the next message.
    fn next(&mut self, with: impl FnOnce(Message<Reply<'_>>) -> Result<()>) -> Result<()> {
        loop {
            for (before, &byte) in self.unread.iter().enumerate() {
                match self.frames.push(byte) {
                    Frame::Unfinished => {}
                    Frame::Overlong => bail!("the management core sends a message that is too long"),
                    Frame::Whole(frame) => {
                        let message =
                            decode(frame).context("the management core sends something that is not a message")?;
                        let result = with(message);
                        self.unread.drain(..=before);
                        return result;
                    }
                }
            }
            self.unread.clear();
            let mut bytes = [0; 16 << 10];
            let count = self.stream.read(&mut bytes).map_err(|_| Gone)?;
            if count == 0 {
                bail!(Gone);
            }
            self.unread.extend_from_slice(bytes.get(..count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core that answers each request with these replies.
    fn core(mut stream: UnixStream, replies: Vec<(u32, Reply<'static>)>) {
        std::thread::spawn(move || {
            let mut frames = Frames::new();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                if let Frame::Whole(frame) = frames.push(byte[0]) {
                    let number = decode::<Request>(frame).unwrap().number;
                    for &(offset, body) in &replies {
                        let message = Message { number: if offset == 9 { 0 } else { number + offset }, body };
                        stream.write_all(encode(&message, &mut [0; MAX_FRAME]).unwrap()).unwrap();
                    }
                }
            }
        });
    }

    fn ask(replies: Vec<(u32, Reply<'static>)>) -> Result<Vec<String>> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        core(theirs, replies);
        let mut seen = Vec::new();
        Link::new(ours).ask(Request::Counters, |reply| {
            seen.push(format!("{reply:?}"));
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn a_series_ends_with_its_last_answer() {
        let counter = Reply::Counter { name: "splits", value: 3 };
        let seen = ask(vec![(0, counter), (1, Reply::Done), (0, counter), (0, Reply::Done)]).unwrap();
        assert_eq!(seen.len(), 3, "{seen:?}");
    }

    #[test]
    fn refusals_are_errors() {
        let refused = ask(vec![(0, Reply::Refused("not now"))]).unwrap_err().to_string();
        assert!(refused.contains("not now"), "{refused}");
        assert!(ask(vec![(9, Reply::Refused("what?"))]).unwrap_err().to_string().contains("did not understand"));
    }

    #[test]
    fn an_end_is_told_from_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Link::new(ours).ask(Request::Bye, |_| Ok(())).unwrap_err();
        assert!(error.is::<Gone>());
    }
}
