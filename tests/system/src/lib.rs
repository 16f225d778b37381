//! What the tests that boot machines share.

use qemu::images::{self, Image};
use qemu::setup::emulator::Emulator;
use qemu::setup::guest::Guest;
use qemu::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

/// Machines that run at the same time: an emulated CPU takes a whole one of the host's.
const MACHINES: usize = 2;

/// The workspace.
pub fn workspace() -> &'static Workspace {
    static WORKSPACE: OnceLock<Workspace> = OnceLock::new();
    WORKSPACE.get_or_init(|| Workspace::locate().expect("the workspace is where it was built"))
}

/// The QEMU under test.
pub fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let chosen = std::env::var_os("HV_QEMU");
        Emulator::find_or_install(chosen.as_deref().map(Path::new)).expect("there is a QEMU")
    })
}

/// The guest Linux.
pub fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::get(workspace()).expect("there is a guest"))
}

/// The hypervisor's flat image.
pub fn hypervisor() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| images::build(workspace(), Image::Hypervisor).expect("the hypervisor builds"))
}

/// The payload's flat image.
pub fn payload() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| images::build(workspace(), Image::Payload).expect("the payload builds"))
}

/// A turn to run a machine; the next test's begins when this is dropped.
#[derive(Debug)]
pub struct Turn(());

static FREE: Mutex<usize> = Mutex::new(MACHINES);
static FREED: Condvar = Condvar::new();

/// Waits until a machine may run.
pub fn turn() -> Turn {
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free = FREED.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
    *free -= 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREED.notify_one();
    }
}

/// A folder for one test's files, removed at its end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

/// A new, empty folder.
pub fn scratch() -> Scratch {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = workspace().folder("scratch").expect("the build folder is writable").join(name);
    std::fs::create_dir_all(&folder).expect("the build folder is writable");
    Scratch(folder)
}

impl Scratch {
    /// A file's path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).expect("the build folder is writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is in the build folder and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
