//! Which registers the guest gets, and how.
//!
//! One rule: a page is mapped to the guest only if every byte of it is known to be registers that the guest may have. Those
//! are the frames in [`Machine`], which end where the architecture ends them, and of redistributors what GICR_TYPER says;
//! whatever else a node's `reg` covers, and whatever another node covers, disabled or not, is not the guest's. A small
//! device whose pages do not pass is not mapped: EL2 forwards accesses to its registers, and to nothing beside them. The
//! first pages of redistributors, which have registers that make the hardware write memory, are not mapped either. A page
//! is one of the guest's table ([`Machine::page`]): with a larger granule, more devices do not fill theirs.

use super::error::MachineError;
use super::parts::{Device, Gic, GicV3, InterruptKind, Machine, Placed, limit};
use crate::range::{PhysRange, merged};
use crate::redistributor::{self, Answer};
use alloc::string::ToString;
use alloc::vec::Vec;
use virtio_mediation::registers::FRAME_BYTES;

#[cfg(test)]
mod tests;

/// A redistributor's frame of registers: RD_base, SGI_base, and with virtual LPIs VLPI_base and a reserved one.
const FRAME: u64 = 64 << 10;
/// Shared peripheral interrupts: INTIDs 32 to 1019.
const SPIS: u32 = 988;
/// The most redistributors that are looked for.
const MAX_REDISTRIBUTORS: usize = 1024;
/// What sentences call the device that `grant-dma` is about.
const VIRTIO: &str = "a virtio device";
/// What sentences call GICD, GICC and GICR frames.
const DISTRIBUTOR: &str = "the GIC's distributor";
const CPU_INTERFACE: &str = "the GIC's CPU interface";
const REDISTRIBUTORS: &str = "the GIC's redistributors";

/// The registers that the guest gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestRegisters {
    /// Whole pages.
    mapped: Vec<PhysRange>,
    /// Apart from each other, ascending.
    guarded: Vec<Guarded>,
    /// Transports whose registers EL2 has for itself, and answers for.
    mediated: Vec<PhysRange>,
}

/// Registers that the guest reaches through EL2 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guarded {
    registers: PhysRange,
    kind: Kind,
}

/// What EL2 does with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What [`redistributor`] says of a first page.
    Redistributor,
    /// Passes it on.
    Forwarded,
}

impl GuestRegisters {
    /// Those of `machine`, with the virtio transports at `granted`, and without redistributors.
    ///
    /// # Errors
    ///
    /// [`MachineError::SharedPage`], [`MachineError::PartOfPage`].
    pub fn new(machine: &Machine, granted: &[u64]) -> Result<Self, MachineError> {
        let claims = Claims::of(machine);
        let mut registers = Self::default();
        match &machine.gic {
            Gic::V2(gic) => {
                registers.map_or_forward(&claims, (DISTRIBUTOR, gic.distributor))?;
                registers.map_or_forward(&claims, (CPU_INTERFACE, gic.cpu_interface))?;
            }
            // Some of its registers are wider than what is forwarded.
            Gic::V3(gic) => {
                claims.whole_pages((DISTRIBUTOR, gic.distributor), gic.distributor)?;
                registers.mapped.push(gic.distributor);
            }
        }
        let console = machine.uart.iter().map(|uart| ("the UART", &uart.device));
        let clock = machine.rtc.iter().map(|rtc| ("the clock", rtc));
        let virtio = machine.virtio.iter().filter(|device| granted.contains(&device.registers.start()));
        let virtio = virtio.map(|device| (VIRTIO, device));
        for (name, Device { registers: frame, .. }) in console.chain(clock).chain(virtio) {
            registers.map_or_forward(&claims, (name, *frame))?;
        }
        Ok(registers)
    }

    /// Adds the virtio transports at `addresses`, which the guest gets by way of EL2.
    ///
    /// # Errors
    ///
    /// [`MachineError::NotMediated`], [`MachineError::SharedPage`].
    pub fn mediate(&mut self, machine: &Machine, addresses: &[u64]) -> Result<(), MachineError> {
        let claims = Claims::of(machine);
        for &address in addresses {
            let device = machine.mediable(address)?;
            if self.mapped.iter().copied().chain(self.forwarded()).any(|range| range.overlaps(device.registers)) {
                return Err(MachineError::NotMediated { address, why: "grant-dma gives it to the guest" });
            }
            claims.apart((VIRTIO, device.registers), device.registers)?;
            self.mediated.push(device.registers);
        }
        Ok(())
    }

    /// The registers of transports that the guest gets by way of EL2, which must have them mapped itself.
    pub fn mediated(&self) -> impl Iterator<Item = PhysRange> {
        self.mediated.iter().copied()
    }

    /// Adds the redistributors, each as large as it says. `read` loads a register of 4 or 8 bytes that lies in one of the
    /// regions of [`GicV3::redistributors`]; it is called for a redistributor only that shares no byte with anything listed.
    ///
    /// # Errors
    ///
    /// [`MachineError::SharedPage`], [`MachineError::PartOfPage`], [`MachineError::NoRedistributor`],
    /// [`MachineError::TooMany`].
    pub fn add_redistributors(
        &mut self,
        machine: &Machine,
        mut read: impl FnMut(u64, u8) -> u64,
    ) -> Result<(), MachineError> {
        let Gic::V3(gic) = &machine.gic else { return Ok(()) };
        let claims = Claims::of(machine);
        for region in &gic.redistributors {
            self.add_region(&claims, gic, *region, &mut read)?;
        }
        Ok(())
    }

    fn add_region(
        &mut self,
        claims: &Claims<'_>,
        gic: &GicV3,
        region: PhysRange,
        read: &mut impl FnMut(u64, u8) -> u64,
    ) -> Result<(), MachineError> {
        let mut next = Some(region.start());
        while let Some(frame) = next.and_then(|start| PhysRange::with_size(start, 2 * FRAME))
            && region.contains_range(frame)
        {
            limit("redistributors", self.guarded.len(), MAX_REDISTRIBUTORS)?;
            claims.whole_pages((REDISTRIBUTORS, region), frame)?;
            let start = frame.start();
            // The address before the register: an unaligned read of a device is a fault.
            if !start.is_multiple_of(FRAME) || !redistributor::is_redistributor(read(start + redistributor::PIDR2, 4)) {
                return Err(MachineError::NoRedistributor { address: start });
            }
            let first = frame.at_most(claims.page);
            self.guard(first, Kind::Redistributor);
            self.mapped.extend(PhysRange::new(first.end(), frame.end()));
            let typer = read(start + redistributor::TYPER, 8);
            if redistributor::is_last(typer) {
                break;
            }
            // A stride that is too short would make a redistributor of the frames for virtual LPIs of the one before.
            let size = if redistributor::has_virtual_lpis(typer) { 4 * FRAME } else { 2 * FRAME };
            next = start.checked_add(gic.redistributor_stride.unwrap_or(0).max(size));
        }
        Ok(())
    }

    /// Maps a frame, or has EL2 forward what is meant for it when there is, or may be, something else in its pages.
    fn map_or_forward(&mut self, claims: &Claims<'_>, frame: Placed<'_>) -> Result<(), MachineError> {
        claims.apart(frame, frame.1)?;
        if claims.is_whole_pages(frame.1) {
            self.mapped.push(frame.1);
        } else {
            self.guard(frame.1, Kind::Forwarded);
        }
        Ok(())
    }

    fn guard(&mut self, registers: PhysRange, kind: Kind) {
        let place = self.guarded.partition_point(|other| other.registers < registers);
        self.guarded.insert(place, Guarded { registers, kind });
    }

    /// The pages that are mapped; sorted, joined.
    pub fn mapped(&self) -> Vec<PhysRange> {
        merged(self.mapped.clone())
    }

    /// The registers that EL2 forwards accesses to, and so must have mapped itself.
    pub fn forwarded(&self) -> impl Iterator<Item = PhysRange> {
        let forwarded = self.guarded.iter().filter(|guarded| guarded.kind == Kind::Forwarded);
        forwarded.map(|guarded| guarded.registers)
    }

    /// What EL2 does with a load of `bytes` bytes at `address`; nothing when it does not answer there.
    pub fn read(&self, address: u64, bytes: u8) -> Option<Answer> {
        self.answer(address, bytes, redistributor::read)
    }

    /// What EL2 does with a store of `bytes` bytes at `address`; nothing when it does not answer there.
    pub fn write(&self, address: u64, bytes: u8) -> Option<Answer> {
        self.answer(address, bytes, redistributor::write)
    }

    fn answer(&self, address: u64, bytes: u8, first_page: fn(u64, u8) -> Answer) -> Option<Answer> {
        let place = self.guarded.partition_point(|guarded| guarded.registers.start() <= address);
        let Guarded { registers, kind } = *self.guarded.get(place.checked_sub(1)?)?;
        match kind {
            _ if !registers.contains(address) => None,
            Kind::Redistributor => Some(first_page(address - registers.start(), bytes)),
            // No register of theirs is wider than a word, and an access of a word lies in one page.
            Kind::Forwarded => {
                let access = PhysRange::with_size(address, bytes.into())?;
                let fits = bytes <= 4 && address.is_multiple_of(bytes.into()) && registers.contains_range(access);
                fits.then_some(Answer::Masked(0xffff_ffff))
            }
        }
    }
}

/// All that anything says lies anywhere.
struct Claims<'a> {
    all: Vec<Placed<'a>>,
    /// [`Machine::page`].
    page: u64,
}

impl<'a> Claims<'a> {
    fn of(machine: &'a Machine) -> Self {
        let mut all = machine.memory();
        all.extend(machine.given());
        all.extend(machine.virtio.iter().map(|device| (VIRTIO, device.registers)));
        all.extend(machine.hidden.iter().map(|hidden| (&hidden.name[..], hidden.registers)));
        Self { all, page: machine.page }
    }

    /// That nothing but `own`, which is one of these, claims a byte of `range`.
    fn apart(&self, own: Placed<'_>, range: PhysRange) -> Result<(), MachineError> {
        // Of two that claim the same, one is another's.
        let place = self.all.iter().position(|claim| *claim == own);
        let others = self.all.iter().enumerate().filter(|(index, _)| Some(*index) != place).map(|(_, claim)| claim);
        let other = { others }.find(|claim| claim.1.overlaps(range));
        other.map_or(Ok(()), |&(other, with)| {
            Err(MachineError::SharedPage {
                device: own.0.to_string(),
                registers: range,
                other: other.to_string(),
                range: with,
            })
        })
    }

    /// That `frame` fills its pages, and shares no byte of them. It is a part of `own`, which is one of these.
    fn whole_pages(&self, own: Placed<'_>, frame: PhysRange) -> Result<(), MachineError> {
        if !self.is_whole_pages(frame) {
            return Err(MachineError::PartOfPage { device: own.0.to_string(), registers: frame, page: self.page });
        }
        self.apart(own, frame)
    }

    /// Whether there is nothing else in its pages that nobody lists.
    fn is_whole_pages(&self, frame: PhysRange) -> bool {
        frame.start().is_multiple_of(self.page) && frame.end().is_multiple_of(self.page)
    }
}

impl Machine {
    /// The virtio transport at `address`, if EL2 can stand between it and the guest.
    ///
    /// # Errors
    ///
    /// [`MachineError::NotMediated`].
    pub fn mediable(&self, address: u64) -> Result<&Device, MachineError> {
        let refuse = |why| MachineError::NotMediated { address, why };
        let device = self.virtio.iter().find(|device| device.registers.start() == address);
        let device = device.ok_or(refuse("there is no virtio-mmio transport at this address"))?;
        if device.registers.size() < FRAME_BYTES || !address.is_multiple_of(FRAME_BYTES) {
            return Err(refuse("its registers are not a whole frame of 0x200 bytes, aligned to its size"));
        }
        if !device.dma_coherent {
            return Err(refuse(
                "its DMA is not coherent with the CPUs' caches (no dma-coherent in its node), and EL2 does not maintain them",
            ));
        }
        if device.interrupt.is_none_or(|interrupt| interrupt.kind != InterruptKind::Spi || interrupt.number >= SPIS) {
            return Err(refuse("it has no shared peripheral interrupt"));
        }
        Ok(device)
    }

    /// What of every machine is given to the guest, in whole or in part.
    pub(super) fn given(&self) -> Vec<Placed<'_>> {
        let mut given: Vec<Placed<'_>> = match &self.gic {
            Gic::V2(gic) => Vec::from([(DISTRIBUTOR, gic.distributor), (CPU_INTERFACE, gic.cpu_interface)]),
            Gic::V3(gic) => {
                let regions = gic.redistributors.iter().map(|&region| (REDISTRIBUTORS, region));
                core::iter::once((DISTRIBUTOR, gic.distributor)).chain(regions).collect()
            }
        };
        given.extend(self.uart.iter().map(|uart| ("the UART", uart.device.registers)));
        given.extend(self.rtc.iter().map(|rtc| ("the clock", rtc.registers)));
        given
    }
}
