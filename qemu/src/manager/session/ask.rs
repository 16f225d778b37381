//! Questions that every service asks.

use super::Session;
use super::wishes::Wanted;
use crate::manager::link::Link;
use anyhow::Result;
use hypervisor_abi::manager::{Reply, Request};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A wait is cut into pieces of so many milliseconds: between two, the user may ask for the end.
const PIECE: u64 = 100;

impl Session {
    /// Waits so long, or until the guest ends, or the user asks for the session's end. Says whether either has.
    pub(super) fn wait(&self, link: &mut Link, time: Duration) -> Result<bool> {
        let mut over = false;
        let mut left = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        loop {
            let piece = left.min(PIECE);
            left -= piece;
            link.ask(Request::Wait { milliseconds: piece as u32 }, |reply| {
                if let Reply::Waited { ended } = reply {
                    over = ended;
                }
                Ok(())
            })?;
            over |= self.asked_to_end.load(Relaxed);
            if !over {
                self.save_if_due(link)?;
            }
            let wanted = self.grant_wishes(link, over)?;
            // While the log is off there is nothing to wait for but the user.
            if over || wanted == Wanted::Harvest || (left == 0 && wanted != Wanted::NoLog) {
                return Ok(over);
            }
        }
    }
}

/// What the engine has counted so far.
pub fn counters(link: &mut Link) -> Result<BTreeMap<String, u64>> {
    let mut counted = BTreeMap::new();
    link.ask(Request::Counters, |reply| {
        if let Reply::Counter { name, value } = reply {
            counted.insert(name.to_owned(), value);
        }
        Ok(())
    })?;
    Ok(counted)
}
