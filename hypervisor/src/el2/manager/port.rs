//! The way to the host: a virtio console that the guest never sees, polled.

use crate::el2::base::{firmware, frames::FRAMES, own_map, refusal::Refusal, registers::read_register};
use alloc::boxed::Box;
use core::ptr::NonNull;
use hypervisor::machine::Machine;
use hypervisor::range::PhysRange;
use hypervisor_abi::manager::{Frame, Frames, MAX_FRAME, Message, Reply, Request, decode, encode};
use stage2::{PAGE_SIZE, PhysAddr};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::{BufferDirection, Hal};

/// Virtio, 5.3: console device.
const CONSOLE: u32 = 3;
/// Virtio, 4.2.2: "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;

/// The registers of the machine's virtio console, which is the hypervisor's.
///
/// # Errors
///
/// A sentence, where there is none, or where no transport can be reached so early.
pub fn find(machine: &Machine) -> Result<PhysRange, Refusal> {
    let is_console = |registers: PhysRange| {
        // Its registers are aligned to their own size, and reached through one page.
        let usable = registers.size() >= 0x100 && registers.start().is_multiple_of(0x100);
        if !usable || !own_map::early_map_device(registers.start()) {
            return false;
        }
        // SAFETY: the device tree has a virtio-mmio transport there, now mapped; reading its identification does nothing.
        let magic = unsafe { core::ptr::read_volatile(registers.start() as *const u32) };
        // SAFETY: as above.
        let device = unsafe { core::ptr::read_volatile((registers.start() + 8) as *const u32) };
        magic == MAGIC && device == CONSOLE
    };
    machine.virtio.iter().map(|device| device.registers).find(|&registers| is_console(registers)).ok_or_else(|| {
        Refusal(
            "manager=on needs a virtio console on a virtio-mmio transport, and the machine has none \
             (QEMU: -device virtio-serial-device -device virtconsole)"
                .into(),
        )
    })
}

/// DMA memory: frames of the hypervisor's own, which lie where devices and EL2 both see them.
struct Dma;

// SAFETY: frames come from the pool, are mapped at their physical addresses, and are given to one caller only.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        let frames = FRAMES.allocate(pages as u64, 1);
        match frames.and_then(|frames| Some((frames.0, NonNull::new(frames.0 as *mut u8)?))) {
            Some((address, pointer)) => {
                // SAFETY: the frames are this function's alone so far.
                unsafe { pointer.write_bytes(0, pages * PAGE_SIZE as usize) };
                (address, pointer)
            }
            // The crate takes address 0 for "no memory".
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(address: u64, _: NonNull<u8>, pages: usize) -> i32 {
        for page in 0..pages as u64 {
            // SAFETY: the caller's promise: allocated by `dma_alloc`, not used any more.
            unsafe { FRAMES.free(PhysAddr(address + page * PAGE_SIZE)) };
        }
        0
    }

    unsafe fn mmio_phys_to_virt(address: u64, _: usize) -> NonNull<u8> {
        // Asked for PCI only; memory is mapped where it lies.
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> u64 {
        buffer.cast::<u8>().addr().get() as u64
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Messages of a series that the host has not confirmed: QEMU drops what a console sends into a socket that is full, so no
/// more than a socket holds may be on the way.
const WINDOW: u32 = 8;
/// How long the host may take to confirm one.
const PATIENCE_SECONDS: u64 = 30;

/// The open port.
pub struct Port {
    console: VirtIOConsole<Dma, MmioTransport<'static>>,
    /// Messages of the series that the host has not confirmed yet.
    on_their_way: u32,
    frames: Box<Frames>,
    frame: Box<[u8; MAX_FRAME]>,
}

/// What has come from the host.
pub enum Received {
    /// Nothing that is complete.
    Nothing,
    /// A request.
    Request(Message<Request>),
    /// A frame that says nothing.
    Rubbish,
}

impl Port {
    /// Takes the device at `registers` into use.
    ///
    /// # Errors
    ///
    /// A sentence with the driver's reason.
    pub fn open(registers: PhysRange) -> Result<Self, Refusal> {
        let refuse = |why: &dyn core::fmt::Display| {
            Refusal(alloc::format!("the virtio console at {registers} cannot be used for management: {why}"))
        };
        let header = NonNull::new(registers.start() as *mut VirtIOHeader).ok_or_else(|| refuse(&"address 0"))?;
        // SAFETY: `find` has found a transport there; it is mapped as device memory for good, and nothing else uses it:
        // its page is not the guest's.
        let transport = unsafe { MmioTransport::new(header, registers.size() as usize) };
        let transport = transport.map_err(|error| refuse(&error))?;
        let console = VirtIOConsole::new(transport).map_err(|error| refuse(&error))?;
        let (frames, frame) = (Box::new(Frames::new()), Box::new([0; MAX_FRAME]));
        Ok(Self { console, on_their_way: 0, frames, frame })
    }

    /// Whether the host has sent something that was not yet looked at.
    pub fn has_input(&mut self) -> bool {
        matches!(self.console.recv(false), Ok(Some(_)))
    }

    /// Reads until a frame is complete, or there is no more.
    pub fn receive(&mut self) -> Received {
        while let Ok(Some(byte)) = self.console.recv(true) {
            match self.frames.push(byte) {
                Frame::Unfinished => {}
                Frame::Overlong => return Received::Rubbish,
                // Number 0 is no host's.
                Frame::Whole(frame) => {
                    return match decode(frame) {
                        Some(message @ Message { number: 1.., .. }) => Received::Request(message),
                        _ => Received::Rubbish,
                    };
                }
            }
        }
        Received::Nothing
    }

    /// Waits until the host has confirmed enough of the series. It sends nothing else before the series has ended.
    fn wait_for_room(&mut self) {
        let start = read_register!("cntpct_el0");
        let patience = read_register!("cntfrq_el0") * PATIENCE_SECONDS;
        while self.on_their_way >= WINDOW {
            match self.console.recv(true) {
                Ok(Some(_)) => self.on_their_way -= 1,
                _ if read_register!("cntpct_el0").wrapping_sub(start) > patience => {
                    log::warn!("manager: the host does not confirm what it is sent");
                    self.on_their_way = 0;
                }
                _ => {
                    firmware::park_if_stopped();
                    core::hint::spin_loop();
                }
            }
        }
    }

    /// Sends an answer. Waits until the device has taken it, and before that until the host has confirmed earlier ones.
    pub fn send(&mut self, number: u32, body: Reply<'_>) {
        if body.is_last() {
            self.on_their_way = 0;
        } else {
            self.wait_for_room();
            self.on_their_way += 1;
        }
        let bytes = match encode(&Message { number, body }, &mut self.frame) {
            Some(bytes) => bytes,
            None => return log::error!("manager: an answer is longer than a message may be"),
        };
        if let Err(error) = self.console.send_bytes(bytes) {
            log::error!("manager: the virtio console fails: {error}");
        }
    }
}
