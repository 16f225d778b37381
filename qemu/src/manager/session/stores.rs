//! Stores that met a policy.

use super::Session;
use crate::manager::link::Link;
use anyhow::Result;
use hypervisor_abi::manager::{Reply, Request};
use std::io::Write;

impl Session {
    /// Asks for the stores that met a policy.
    pub(super) fn take_stores(&mut self, link: &mut Link) -> Result<()> {
        /// Stores of one round that are shown.
        const SHOWN: u64 = 8;
        let mut seen = 0;
        let Self { stores: file, show, summary, symbols, .. } = self;
        let [reported, refused, missing] = summary.stores.get_or_insert_default();
        link.ask(Request::Stores, |reply| {
            match reply {
                Reply::Store { ipa, va, pc, vbar, cpu, denied } => {
                    *(if denied { &mut *refused } else { &mut *reported }) += 1;
                    seen += 1;
                    let symbol = symbols.as_ref().and_then(|symbols| symbols.name(symbols.base(vbar)?, pc));
                    if seen <= SHOWN {
                        let denied = if denied { "denied: " } else { "" };
                        let by = symbol.as_ref().map_or_else(|| format!("{pc:#x}"), Clone::clone);
                        show.say(&format!("{denied}store to {ipa:#x} by {by} (cpu {cpu:x})"));
                    }
                    if let Some(file) = file {
                        let symbol = symbol.unwrap_or_default();
                        writeln!(file, "{ipa:#x},{va:#x},{pc:#x},{cpu:#x},{},{symbol}", u8::from(denied))?;
                    }
                }
                Reply::Stores { lost } => *missing += lost,
                _ => {}
            }
            Ok(())
        })?;
        if seen > SHOWN {
            show.say(&format!("and {} more stores in this round", seen - SHOWN));
        }
        Ok(())
    }
}
