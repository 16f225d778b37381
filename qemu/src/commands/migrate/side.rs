//! One of the two machines.

use crate::console::BACK;
use crate::run::Stopper;
use rustix::net::Shutdown;
use std::borrow::Cow;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What is known of a machine that runs.
#[derive(Debug)]
pub struct Side {
    /// The end of the management core's line.
    pub stream: UnixStream,
    /// Ends it.
    pub stopper: Stopper,
    over: Mutex<bool>,
    changed: Condvar,
}

/// The console of a machine that a guest comes to: what there is before it comes is not the guest's.
#[derive(Debug, Default)]
pub struct Coming {
    before: Vec<u8>,
    came: bool,
}

impl Coming {
    /// What of these bytes comes from the line on with which the hypervisor lets the guest go on.
    pub fn take<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        if self.came {
            return Cow::Borrowed(bytes);
        }
        self.before.extend_from_slice(bytes);
        let begins = self.before.windows(BACK.len()).position(|window| window == BACK);
        match begins {
            Some(begins) => {
                self.came = true;
                Cow::Owned(self.before.split_off(begins))
            }
            None => {
                // A line that has begun may be the one.
                let kept = self.before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
                self.before.drain(..kept);
                Cow::Owned(Vec::new())
            }
        }
    }
}

impl Side {
    /// A machine that is to run.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, stopper: Stopper::default(), over: Mutex::new(false), changed: Condvar::new() }
    }

    /// Its QEMU has ended, and was waited for. Whoever waits for its management core's answer is told.
    pub fn is_over(&self) {
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Both);
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until its QEMU has ended. Says whether it has.
    pub fn wait(&self, time: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(over, time, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_guest_is_left_out() {
        let console = b"[unbroken] boots\r\n[unbroken] goes on\r\nguest\n[unbroken] goes on\r\n";
        for step in [1, 3, 1000] {
            let mut coming = Coming::default();
            let taken: Vec<u8> = console.chunks(step).flat_map(|piece| coming.take(piece).into_owned()).collect();
            assert_eq!(taken, console[18..]);
        }
    }
}
