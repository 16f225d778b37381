//! Questions that every service asks.

use crate::manager::link::Link;
use anyhow::Result;
use hypervisor_abi::manager::{Reply, Request};
use std::collections::BTreeMap;
use std::time::Duration;

/// Waits so long, or until the guest ends. Says whether it has ended.
pub fn wait(link: &mut Link, time: Duration) -> Result<bool> {
    let mut over = false;
    link.ask(Request::Wait { milliseconds: time.as_millis().try_into().unwrap_or(u32::MAX) }, |reply| {
        if let Reply::Waited { ended } = reply {
            over = ended;
        }
        Ok(())
    })?;
    Ok(over)
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
