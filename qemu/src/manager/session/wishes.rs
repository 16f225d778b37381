//! What the user of the live view wants: to freeze the guest, to stop the log for a while, to harvest now.

use super::Session;
use crate::live::{Screen, Wish};
use crate::manager::link::Link;
use anyhow::Result;
use hypervisor_abi::manager::{Mechanism, Request};

/// What the user wants of whoever waits for the next harvest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// Not to wait any longer.
    Harvest,
    /// Not to harvest: the log is off.
    NoLog,
}

impl Session {
    /// Does what was wished for since the last time. When all is `over`, the guest goes on and the log runs, so that what
    /// follows finds things as it left them.
    pub(super) fn grant_wishes(&self, link: &mut Link, over: bool) -> Result<Wanted> {
        let Some(screen) = self.show.screen() else { return Ok(Wanted::Nothing) };
        let mut wanted = Wanted::Nothing;
        while let Some(wish) = screen.take_wish() {
            let (mut frozen, mut logging) = (false, false);
            screen.update(|state| (frozen, logging) = (state.frozen, state.logging));
            match wish {
                Wish::Save => self.ask_to_save(screen, frozen),
                _ if self.summary.mechanism.is_none() => say(screen, "the log has not begun yet"),
                Wish::Freeze => self.set_frozen(link, screen, !frozen)?,
                // A log's start and end change all of the guest's memory.
                Wish::Log if frozen => say(screen, "the guest is frozen: press f first, so that it goes on"),
                Wish::Log => self.set_logging(link, screen, !logging)?,
                Wish::Harvest if logging => wanted = Wanted::Harvest,
                Wish::Harvest => say(screen, "the log is off: press l first"),
            }
        }
        let (mut frozen, mut logging) = (false, false);
        screen.update(|state| (frozen, logging) = (state.frozen, state.logging));
        let begun = self.summary.mechanism.is_some();
        if over && frozen {
            self.set_frozen(link, screen, false)?;
        }
        if over && begun && !logging {
            self.set_logging(link, screen, true)?;
        }
        Ok(if begun && !logging && !over { Wanted::NoLog } else { wanted })
    }

    /// The machine is saved when it is looked for next.
    fn ask_to_save(&self, screen: &Screen, frozen: bool) {
        match &self.plan.save {
            None => say(screen, "nothing says where: start with --save FILE --save-when asked"),
            Some(_) if self.saved.borrow().is_some() => say(screen, "a run saves once, and this one has: see above"),
            Some(_) if frozen => say(screen, "the guest is frozen: press f first, so that it goes on"),
            Some(save) => save.ask(),
        }
    }

    fn set_frozen(&self, link: &mut Link, screen: &Screen, frozen: bool) -> Result<()> {
        link.ask(if frozen { Request::Freeze } else { Request::Thaw }, |_| Ok(()))?;
        screen.update(|state| state.frozen = frozen);
        say(screen, if frozen { "the guest stands still" } else { "the guest goes on" });
        Ok(())
    }

    fn set_logging(&self, link: &mut Link, screen: &Screen, logging: bool) -> Result<()> {
        let mechanism = self.summary.mechanism.unwrap_or(Mechanism::Auto);
        link.ask(if logging { Request::Start { mechanism, all_dirty: false } } else { Request::Stop }, |_| Ok(()))?;
        screen.update(|state| state.logging = logging);
        say(screen, if logging { "the log runs" } else { "the log is off: leaves are large again" });
        Ok(())
    }
}

fn say(screen: &Screen, text: &str) {
    screen.update(|state| state.said = text.to_owned());
}
