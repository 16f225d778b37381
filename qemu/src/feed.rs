//! Standard input for a command in the guest: read here, and sent to `/hv/init` as it asks for it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// Bytes of a piece: with base64 and a newline, less than the 4096 that a line of the guest's terminal may have.
const PIECE: usize = 2250;
/// What ends it, instead of a piece.
const END: &[u8] = b".\n";

/// Whether standard input has something for the guest: a file or a pipe. A terminal is not for a command that runs by itself, and
/// other devices (as /dev/null) hold nothing.
pub fn is_wanted() -> bool {
    use rustix::fs::FileType;
    let kind = rustix::fs::fstat(io::stdin().as_fd()).map(|data| FileType::from_raw_mode(data.st_mode));
    matches!(kind, Ok(FileType::RegularFile | FileType::Fifo | FileType::Socket))
}

/// Pieces on their way.
#[derive(Debug)]
pub struct Feed {
    permits: Sender<()>,
    given: u64,
}

impl Feed {
    /// Begins to feed from `source`; the second value is what is to be typed into the guest's console.
    pub fn begin(source: impl Read + Send + 'static) -> (Self, Receiver<Vec<u8>>) {
        let (permits, asked) = mpsc::channel();
        let (sender, typed) = mpsc::channel();
        // It ends with the input, with the run, or with the process.
        thread::spawn(move || send_all(source, &asked, &sender));
        (Self { permits, given: 0 }, typed)
    }

    /// The guest has room for so many pieces in all.
    pub fn allow(&mut self, pieces: u64) {
        for _ in self.given..pieces {
            // After the input's end nobody waits for it.
            let _ = self.permits.send(());
        }
        self.given = self.given.max(pieces);
    }
}

fn send_all(mut source: impl Read, asked: &Receiver<()>, sender: &Sender<Vec<u8>>) {
    let mut bytes = [0; PIECE];
    while asked.recv().is_ok() {
        let count = source.read(&mut bytes).unwrap_or(0);
        let line = match count {
            0 => END.to_vec(),
            _ => (STANDARD.encode(&bytes[..count]) + "\n").into_bytes(),
        };
        if sender.send(line).is_err() || count == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_piece_comes_for_each_permit_and_then_the_end() {
        let (mut feed, typed) = Feed::begin(io::Cursor::new(vec![b'x'; PIECE + 1]));
        assert!(typed.recv_timeout(Duration::from_millis(50)).is_err(), "nothing was asked for");
        feed.allow(1);
        let first = typed.recv().unwrap();
        assert!(first.len() < 4096 && first.ends_with(b"\n"));
        feed.allow(1);
        assert!(typed.recv_timeout(Duration::from_millis(50)).is_err(), "the same permit was given twice");
        feed.allow(3);
        assert_eq!([typed.recv().unwrap(), typed.recv().unwrap()], [b"eA==\n".to_vec(), END.to_vec()]);
        assert!(typed.recv().is_err());
    }
}
