//! The way to the host: a virtio console that the guest never sees, polled.

use crate::el2::base::dma::{self, Dma};
use crate::el2::base::{cpu, firmware, refusal::Refusal, registers::read_register};
use alloc::boxed::Box;
use hypervisor::machine::Machine;
use hypervisor::range::PhysRange;
use hypervisor_abi::manager::{Frame, Frames, MAX_FRAME, Message, Reply, Request, decode, encode};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::mmio::MmioTransport;

/// Virtio, 5.3: console device.
const CONSOLE: u32 = 3;

/// The registers of the machine's virtio console, which is the hypervisor's.
///
/// # Errors
///
/// A sentence, where there is none, or where no transport can be reached so early.
pub fn find(machine: &Machine) -> Result<PhysRange, Refusal> {
    dma::find(machine, CONSOLE, |_| true).ok_or_else(|| {
        Refusal(
            "manager=on needs a virtio console on a virtio-mmio transport, and the machine has none \
             (QEMU: -device virtio-serial-device -device virtconsole)"
                .into(),
        )
    })
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
        // SAFETY: `find` has found a transport there; it is mapped as device memory for good, and nothing else uses it:
        // its page is not the guest's.
        let transport = unsafe { dma::transport(registers) };
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
                    cpu::pause();
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
