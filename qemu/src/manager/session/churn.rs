//! Changes of the table for their own sake: splits and collapses of all memory, and changes at random.

use super::Session;
use super::ask::counters;
use crate::manager::link::Link;
use anyhow::Result;
use hypervisor_abi::manager::Request;
use std::collections::BTreeMap;

impl Session {
    /// Splits and collapses until the guest ends. What happens once the guest's command runs is what counts: while it boots,
    /// the guest also meets registers that the hypervisor guards by faults.
    pub(super) fn storm(&mut self, link: &mut Link) -> Result<()> {
        let mut before = counters(link)?;
        let mut begun = self.show.has_begun();
        let mut rounds = 0;
        self.summary.storm = Some((0, BTreeMap::new()));
        loop {
            let ended = self.wait(link, self.plan.every)?;
            if !begun && self.show.has_begun() {
                (begun, rounds, before) = (true, 0, counters(link)?);
            }
            if !ended {
                link.ask(Request::Storm, |_| Ok(()))?;
                rounds += 1;
                self.show.state(&format!("split all memory to pages and collapsed it again {rounds} times"));
            }
            self.take_events(link)?;
            let mut counted = counters(link)?;
            for (name, value) in &mut counted {
                *value -= before.get(name).copied().unwrap_or(0);
            }
            self.summary.storm = Some((rounds, counted));
            if ended {
                return Ok(());
            }
        }
    }

    /// Changes the table at random until the guest ends, then makes it as it was.
    pub(super) fn churn(&mut self, link: &mut Link, seed: u64) -> Result<()> {
        /// Changes in a round: few enough that the log of events has room for all that they do.
        const CHANGES: u32 = 8;
        let mut rounds = 0;
        while !self.wait(link, self.plan.every)? {
            link.ask(Request::Churn { seed: seed.wrapping_add(rounds << 32), changes: CHANGES }, |_| Ok(()))?;
            rounds += 1;
            self.summary.churn = Some(rounds);
            self.take_events(link)?;
            // The stores that met a range of the churn's are nobody's news, but their pages are to be closed again.
            link.ask(Request::Stores, |_| Ok(()))?;
            self.show.state(&format!("changed the table at random {} times", rounds * u64::from(CHANGES)));
        }
        link.ask(Request::Churn { seed, changes: 0 }, |_| Ok(()))
    }
}
