//! Saving a machine, and going on from what was saved.

use super::Session;
use crate::manager::link::{Gone, Link};
use crate::manager::saving::{Resume, Save};
use crate::saved::Draft;
use anyhow::{Result, ensure};
use hypervisor_abi::manager::{Downtime, Reply, Request, Share};
use hypervisor_abi::saved::BLOCK_BYTES;
use std::path::PathBuf;

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sent {
    /// Pages in the file's part.
    pub pages: u64,
    /// Pages that are only named.
    pub zero_pages: u64,
    /// Bytes of the file.
    pub end: u64,
    /// Pages that are dirty again.
    pub left: Option<u64>,
    /// What it took while the guest was stopped.
    pub stopped: Option<Downtime>,
}

/// Has pages written to the store.
///
/// # Errors
/// If the core refuses; the guest runs on.
pub fn send(link: &mut Link, share: Share, stop: bool) -> Result<Sent> {
    let mut sent = Sent::default();
    link.ask(Request::Send { share, stop }, |reply| {
        if let Reply::Sent { pages, zero_pages, end, left, stopped } = reply {
            sent = Sent { pages, zero_pages, end, left, stopped };
        }
        Ok(())
    })?;
    Ok(sent)
}

/// Has the store read up to a byte. Returns how many pages have come, and the hash of all memory once all has.
///
/// # Errors
/// If the core refuses.
pub fn load(link: &mut Link, end: u64) -> Result<(u64, Option<u64>)> {
    let mut loaded = (0, None);
    link.ask(Request::Load { end }, |reply| {
        if let Reply::Loaded { pages, hash } = reply {
            loaded = (pages, hash);
        }
        Ok(())
    })?;
    Ok(loaded)
}

impl Session {
    /// Saves the machine if it is time. A machine that does not run on afterwards is gone.
    pub(super) fn save_if_due(&self, link: &mut Link) -> Result<()> {
        let Some(save) = self.plan.save.as_ref().filter(|save| save.is_due()) else { return Ok(()) };
        let Some(draft) = save.take_draft() else { return Ok(()) };
        self.show.state("the machine is saved");
        match self.save(link, save, draft) {
            Ok((path, pages)) => {
                *self.saved.borrow_mut() = Some(Ok((path, pages)));
                if !save.go_on {
                    link.ask(Request::Release, |_| Ok(()))?;
                    return Err(Gone.into());
                }
                link.ask(Request::Go, |_| Ok(()))?;
            }
            Err(error) if error.is::<Gone>() => return Err(error),
            Err(error) => {
                self.show.say(&format!("not saved: {error:#}; the guest runs on"));
                *self.saved.borrow_mut() = Some(Err(format!("the machine was not saved: {error:#}")));
            }
        }
        save.goes_on();
        Ok(())
    }

    /// Writes the file; the guest stands still then. If that fails, the guest runs on.
    fn save(&self, link: &mut Link, save: &Save, draft: Draft) -> Result<(PathBuf, u64)> {
        let sent = send(link, Share::All, true)?;
        let finished = save.machine().and_then(|machine| draft.finish(sent.end, &machine));
        if finished.is_err() {
            link.ask(Request::Go, |_| Ok(()))?;
        }
        Ok((finished?, sent.pages))
    }

    /// Takes the guest in, and starts it.
    pub(super) fn resume(&self, link: &mut Link, resume: &Resume) -> Result<()> {
        let contents = resume.saved.contents;
        let (pages, hash) = load(link, contents.blocks * BLOCK_BYTES)?;
        ensure!(
            pages == contents.pages && hash == Some(contents.hash),
            "{} pages came with the hash {hash:x?}, and the file has {} with {:#x}",
            pages,
            contents.pages,
            contents.hash
        );
        link.ask(Request::Go, |_| Ok(()))?;
        self.show.begin();
        resume.goes_on();
        Ok(())
    }
}
