//! The store: a disk that the guest never sees (`store=`), whose back end is the file that a guest is saved in.

use crate::el2::base::dma::{self, Dma};
use crate::el2::base::refusal::Refusal;
use crate::el2::mediation::hold::Unrestorable;
use crate::el2::saving;
use alloc::format;
use core::fmt;
use hypervisor::machine::Machine;
use hypervisor::options::Options;
use hypervisor::range::PhysRange;
use hypervisor_abi::saved::{BLOCK_BYTES, Difference};
use stage2::PAGE_SIZE;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;

/// Virtio, 5.2: block device.
const BLOCK_DEVICE: u32 = 2;
/// VIRTIO_F_INDIRECT_DESC (Virtio, 6).
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const SECTORS: u64 = BLOCK_BYTES / SECTOR_SIZE as u64;

/// Why a guest is not sent, or not taken in.
pub enum Failure {
    /// A sentence.
    Said(&'static str),
    /// The guest's state.
    State(saving::Error),
    /// The engine's.
    Engine(stage2::Error),
    /// The device.
    Device(virtio_drivers::Error),
    /// The device has room for so many bytes.
    Full(u64),
    /// The file.
    File(hypervisor_abi::saved::Error),
    /// A device behind the hypervisor.
    Unrestorable(Unrestorable),
    /// The machine is another one.
    Differs(Difference),
    /// The memory's hash is not that of the file's end.
    Memory {
        /// What the file says.
        saved: u64,
        /// What it is.
        here: u64,
    },
}

impl From<saving::Error> for Failure {
    fn from(error: saving::Error) -> Self {
        Self::State(error)
    }
}

impl From<Unrestorable> for Failure {
    fn from(why: Unrestorable) -> Self {
        Self::Unrestorable(why)
    }
}

impl From<stage2::Error> for Failure {
    fn from(error: stage2::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<hypervisor_abi::saved::Error> for Failure {
    fn from(error: hypervisor_abi::saved::Error) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(text) => f.write_str(text),
            Self::State(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
            Self::Device(error) => write!(
                f,
                "the store fails ({error}): there may be no space left where the file is, or it can't be read or written"
            ),
            Self::Full(bytes) => write!(f, "the file is full: the store has room for {} MiB", bytes >> 20),
            Self::File(error) => write!(f, "the file can't be used: {error}"),
            Self::Unrestorable(why) => write!(f, "a device can't have its state back: {why}"),
            Self::Differs(difference) => write!(f, "the guest can't go on here: {difference}"),
            Self::Memory { saved, here } => {
                write!(
                    f,
                    "the memory has the hash {here:#x}, and had {saved:#x} where it was saved: something is missing"
                )
            }
        }
    }
}

/// The registers of the store, if there is to be one. The guest gets no part of their page.
///
/// # Errors
///
/// A sentence: no such device, no management core, a grant of what shares the device's page.
pub fn find(machine: &Machine, options: &Options) -> Result<Option<PhysRange>, Refusal> {
    let Some(address) = options.store else {
        if options.resume {
            return Err(Refusal("resume=on needs store=ADDRESS, the disk that the guest is read from".into()));
        }
        return Ok(None);
    };
    if !options.wants_manager() {
        return Err(Refusal(format!("store={address:#x} has no effect without a management core: add manager=on")));
    }
    let device = dma::find(machine, BLOCK_DEVICE, |registers| registers.start() == address).ok_or_else(|| {
        Refusal(format!(
            "store={address:#x} is no virtio disk on a virtio-mmio transport (QEMU: -device virtio-blk-device,...)"
        ))
    })?;
    let page = device.grown_to(PAGE_SIZE).unwrap_or(device);
    let given = options.grant_dma.iter().find(|&&granted| page.contains(granted));
    if let Some(granted) = given {
        return Err(Refusal(format!(
            "grant-dma={granted:#x} would give the guest the page of the store at {device}: attach one of them elsewhere"
        )));
    }
    if options.mediate.contains(&address) {
        return Err(Refusal(format!(
            "mediate={address:#x} would give the guest the store: it is the hypervisor's own"
        )));
    }
    Ok(Some(device))
}

/// The device in use.
pub struct Store {
    disk: VirtIOBlk<Dma, MmioTransport<'static>>,
}

impl Store {
    /// Takes the device at `registers`, which [`find`] has found, into use.
    ///
    /// # Errors
    ///
    /// A sentence with the driver's reason.
    pub fn open(registers: PhysRange) -> Result<Self, Refusal> {
        let refuse = |why: &dyn fmt::Display| Refusal(format!("the store at {registers} cannot be used: {why}"));
        // SAFETY: `find` has found it, the own map has it, and this is called once, at start-up; its page is not the guest's.
        let mut transport = unsafe { dma::transport(registers) }.map_err(|error| refuse(&error))?;
        if transport.read_device_features() & INDIRECT_DESCRIPTORS != 0 {
            // The driver would take memory of the heap's for each request, which the guest's logs may have used up.
            return Err(refuse(&"it has indirect descriptors: switch them off (QEMU: indirect_desc=off)"));
        }
        let disk = VirtIOBlk::new(transport).map_err(|error| refuse(&error))?;
        Ok(Self { disk })
    }

    fn check(&self, block: u64, bytes: usize) -> Result<usize, Failure> {
        let room = self.disk.capacity().saturating_mul(SECTOR_SIZE as u64);
        let end = block.checked_mul(BLOCK_BYTES).and_then(|start| start.checked_add(bytes as u64));
        match end {
            Some(end) if end <= room && bytes > 0 => Ok((block * SECTORS) as usize),
            _ => Err(Failure::Full(room)),
        }
    }

    /// Writes whole blocks from `block` on. The device reads them where they are.
    pub fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Failure> {
        let sector = self.check(block, bytes.len())?;
        self.disk.write_blocks(sector, bytes).map_err(Failure::Device)
    }

    /// Reads whole blocks from `block` on. The device writes them where they are to be.
    pub fn read(&mut self, block: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let sector = self.check(block, bytes.len())?;
        self.disk.read_blocks(sector, bytes).map_err(Failure::Device)
    }

    /// Waits until what was written is where it stays.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.disk.flush().map_err(Failure::Device)
    }
}
