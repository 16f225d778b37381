//! The engine's events, for the oracle.

use super::Session;
use crate::manager::link::Link;
use anyhow::Result;
use hypervisor_abi::manager::{Reply, Request};

impl Session {
    /// Asks for the engine's events, if they are wanted.
    pub(super) fn take_events(&mut self, link: &mut Link) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        link.ask(Request::Events, |reply| match reply {
            Reply::Events(records) => events.add(records),
            Reply::EventsLeft { lost } => {
                events.lose(lost);
                Ok(())
            }
            _ => Ok(()),
        })
    }
}
