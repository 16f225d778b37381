//! What the tool does while a guest runs, through the management core: dirty logs, write protection, audits.

pub mod about;
pub mod heatmap;
pub mod link;
mod on_screen;
pub mod plan;
pub mod record;
pub mod saving;
pub mod session;
pub mod show;

use crate::machine::Machine;
use crate::run::Stopper;
use anyhow::{Context, Result};
use link::Link;
use plan::Plan;
use rustix::io::FdFlags;
use rustix::net::Shutdown;
use session::Summary;
use show::Show;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

/// The page of virtio-mmio transports that no device of the guest's is ever put on.
const TRANSPORT: u32 = 24;

/// A session that runs beside the machine.
#[derive(Debug)]
pub struct Running {
    end: UnixStream,
    asked_to_end: Arc<AtomicBool>,
    thread: JoinHandle<Result<Summary>>,
}

/// Adds the management core and its device to a machine, and returns the end of the line to it.
///
/// # Errors
/// If no socket can be made.
pub fn connect(machine: &mut Machine) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().context("can't make a socket for the management core")?;
    let theirs: Arc<OwnedFd> = Arc::new(theirs.into());
    // QEMU gets it under the same number. So does whatever else is started meanwhile, which does no harm: the session ends
    // by a shutdown, not by the last end's closing.
    rustix::io::fcntl_setfd(&*theirs, FdFlags::empty()).context("can't hand a socket to QEMU")?;
    machine.smp += 1;
    machine.append += " manager=on";
    let number = std::os::fd::AsRawFd::as_raw_fd(&*theirs);
    let words = [
        "-global".to_owned(),
        "virtio-mmio.force-legacy=false".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=management,fd={number}"),
        "-device".to_owned(),
        format!("virtio-serial-device,max_ports=1,bus=virtio-mmio-bus.{TRANSPORT}"),
        "-device".to_owned(),
        "virtconsole,chardev=management".to_owned(),
    ];
    machine.extra.extend(words.map(Into::into));
    machine.inherited.push(theirs);
    Ok(ours)
}

/// Adds the management core and its device to a machine, and begins the session that does what `plan` says. A session that
/// fails, or that was asked to end, ends the machine by `stopper`.
///
/// # Errors
/// If no socket or no file of the plan's can be made.
pub fn attach(machine: &mut Machine, plan: Plan, show: Arc<Show>, stopper: Stopper) -> Result<Running> {
    let ours = connect(machine)?;
    if let Some(every) = plan.drop_dirty {
        machine.append += &format!(" drop-dirty={every}");
    }
    if let Some(case) = &plan.unmarked {
        machine.append += &format!(" unmarked={case}");
    }
    let end = ours.try_clone().context("can't share a socket")?;
    let asked_to_end = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&asked_to_end);
    let session = session::Session::new(plan, show, Arc::clone(&asked))?;
    let perform = move || {
        let result = session.run(Link::new(ours));
        if result.is_err() || asked.load(Relaxed) {
            stopper.stop();
        }
        result
    };
    let thread =
        std::thread::Builder::new().name("management".into()).spawn(perform).context("can't start a thread")?;
    Ok(Running { end, asked_to_end, thread })
}

impl Running {
    /// Asks the session to end when this is called: the log is harvested once more, and all is written.
    pub fn end_asker(&self) -> impl Fn() + Send + 'static {
        let asked_to_end = Arc::clone(&self.asked_to_end);
        move || asked_to_end.store(true, Relaxed)
    }

    /// Waits for the session's end. Call it once QEMU has ended.
    ///
    /// # Errors
    /// What went wrong in the session.
    pub fn finish(self) -> Result<Summary> {
        // QEMU is gone: a thread that still reads is told so. The other end may be closed already, which is as good.
        let _ = rustix::net::shutdown(&self.end, Shutdown::Both);
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Step;
    use session::Session;

    #[test]
    fn a_machine_that_is_gone_too_early_is_told_of() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let show = Arc::new(Show::beside_output(Step::begin("Nothing")));
        let session = Session::new(Plan { storm: Some(1), ..Plan::default() }, show, Arc::default()).unwrap();
        let summary = session.run(Link::new(ours)).unwrap();
        assert!(summary.cut_short && !summary.is_good());
    }
}
