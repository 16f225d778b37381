//! One CPU of the guest's: all that it has in registers, as it is saved, and how it goes on with it.

use crate::el2::base::cpu::{self, CpuArea};
use crate::el2::base::registers::{isb, read_register, write_register};
use crate::el2::guest_memory;
use crate::el2::saving::error::{Error, NO_MEMORY, copy, room};
use crate::el2::saving::gic::{BANKED, Gic};
use crate::el2::saving::left_out::left_out;
use crate::el2::saving::registers::{self, COUNT, Has};
use crate::el2::saving::vectors;
use alloc::vec::Vec;
use hypervisor::cpu_id::CpuId;

unsafe extern "C" {
    fn resume_guest(general: *const u64, stack_top: usize) -> !;
}

/// Words of a record before the vectors: affinity, whether it is on, x0 to x30, ELR_EL2, SPSR_EL2, the table's, and what the
/// CPU has for itself of a GICv2.
const WORDS: usize = 2 + GENERAL + 2 + COUNT + BANKED;
/// x0 to x30.
pub const GENERAL: usize = 31;

/// What a CPU had when it arrived.
pub struct State {
    mpidr: u64,
    on: bool,
    general: [u64; GENERAL],
    pc: u64,
    pstate: u64,
    system: [u64; COUNT],
    banked: [u64; BANKED],
    /// As large as they may be, and how much of it is in use.
    vectors: Vec<u8>,
    used: usize,
}

impl State {
    /// Of a CPU that is off.
    pub const fn off(mpidr: u64) -> Self {
        let (general, system, banked) = ([0; GENERAL], [0; COUNT], [0; BANKED]);
        Self { mpidr, on: false, general, pc: 0, pstate: 0, system, banked, vectors: Vec::new(), used: 0 }
    }

    /// Makes room for the vectors of a CPU with these ID registers.
    ///
    /// # Errors
    ///
    /// Where there is no memory.
    pub fn make_room(&mut self, id: &CpuId) -> Result<(), Error> {
        let bytes = vectors::most_bytes(id);
        let more = bytes.saturating_sub(self.vectors.len());
        self.vectors.try_reserve_exact(more).map_err(|_| NO_MEMORY)?;
        self.vectors.resize(bytes, 0);
        Ok(())
    }

    /// Takes what the executing CPU has, which came from the guest with these in x0 to x30. The CPU that stops it has the bit `source`.
    pub fn capture(&mut self, gic: &Gic, source: u64, general: &[u64; GENERAL]) -> Option<()> {
        let id = cpu::this_cpu().id.get()?;
        self.on = true;
        self.general = *general;
        (self.pc, self.pstate) = (read_register!("elr_el2"), read_register!("spsr_el2"));
        registers::save(&Has::of_this_cpu(*id, cpu::has_gic_registers()), &mut self.system);
        gic.save_own(source, &mut self.banked);
        self.used = vectors::save(id, &mut self.vectors)?;
        Some(())
    }

    /// The CPU is off.
    pub fn is_off(&mut self) {
        self.on = false;
    }

    /// As it is saved. An off CPU has nothing but its name.
    ///
    /// # Errors
    ///
    /// Where there is no memory for it.
    pub fn record(&self) -> Result<Vec<u8>, Error> {
        let vectors = self.vectors.get(..self.used).unwrap_or_default();
        let mut bytes = room(WORDS * size_of::<u64>() + vectors.len())?;
        let mut add = |words: &[u64]| bytes.extend(words.iter().copied().flat_map(u64::to_le_bytes));
        add(&[self.mpidr, self.on.into()]);
        if self.on {
            add(&self.general);
            add(&[self.pc, self.pstate]);
            add(&self.system);
            add(&self.banked);
            bytes.extend(vectors);
        }
        Ok(bytes)
    }

    /// Reads a record for one of `areas`, and checks it: nothing in it may lead anywhere but to EL1 and EL0.
    ///
    /// # Errors
    ///
    /// A sentence's reason.
    pub fn read<'a>(record: &[u8], mut areas: impl Iterator<Item = &'a CpuArea>) -> Result<Self, Error> {
        let wrong = Error::Said("a CPU's registers in the file are not those of this machine's CPUs");
        let (words, rest) = record.as_chunks::<8>();
        let mut words = words.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || words.next().ok_or(wrong);
        let (mpidr, on) = (next()?, next()?);
        let area = areas.find(|area| area.cpu.id.get().is_some_and(|id| id.affinity() == mpidr)).ok_or(wrong)?;
        let mut state = Self::off(mpidr);
        match on {
            0 if record.len() == 16 => return Ok(state),
            1 if rest.is_empty() => state.on = true,
            _ => return Err(wrong),
        }
        for value in &mut state.general {
            *value = next()?;
        }
        (state.pc, state.pstate) = (next()?, next()?);
        for value in state.system.iter_mut().chain(&mut state.banked) {
            *value = next()?;
        }
        let id = area.cpu.id.get().ok_or(wrong)?;
        let vectors = record.get(WORDS * 8..).ok_or(wrong)?;
        let svcr = registers::value(&state.system, "SVCR");
        if Some(vectors.len()) != vectors::bytes(id, svcr) || !is_guests(state.pstate, id) {
            return Err(wrong);
        }
        state.vectors = copy(vectors)?;
        state.used = vectors.len();
        Ok(state)
    }

    /// The affinity fields of the CPU.
    pub const fn mpidr(&self) -> u64 {
        self.mpidr
    }

    /// Whether it is on.
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// Goes on in the guest on the executing CPU, which has been set up for a guest, and whose CNTVOFF_EL2 is right.
    pub fn enter(self, gic: &Gic) -> ! {
        gic.restore_own(&self.banked);
        if let Some(id) = cpu::this_cpu().id.get() {
            registers::restore(&Has::of_this_cpu(*id, cpu::has_gic_registers()), &self.system, left_out);
            // SVCR has made them 0: they are last.
            if !left_out("vectors") && vectors::restore(id, &self.vectors).is_none() {
                log::error!("saving: SVCR does not hold what was written: the guest's vector registers are lost");
            }
        }
        // Nothing is left of what was translated while stage 1 was half set up, nor of instructions from before the load.
        guest_memory::activate();
        // SAFETY: only caches change.
        unsafe { core::arch::asm!("ic iallu", "dsb nsh", options(nostack, preserves_flags)) };
        isb();
        if !left_out("PSTATE") {
            write_register!("spsr_el2", self.pstate);
        }
        write_register!("elr_el2", self.pc);
        let general = if left_out("x") { [0; GENERAL] } else { self.general };
        // What the heap has of this is not given back: the stack is left.
        // SAFETY: the stack is this CPU's, and nothing on it is returned to; `general` is read before anything is pushed.
        unsafe { resume_guest(general.as_ptr(), cpu::this_area().stack().end) }
    }
}

/// Whether an ERET with this SPSR_EL2 goes to EL0, or to EL1 in AArch64 (Arm ARM, C5.2.19).
fn is_guests(pstate: u64, id: &CpuId) -> bool {
    /// {nRW, EL, SP}.
    const MODE: u64 = 0x1f;
    const EL0T: u64 = 0;
    const EL1T: u64 = 4;
    const EL1H: u64 = 5;
    const AARCH32_USER: u64 = 0x10;
    match pstate & MODE {
        EL0T | EL1T | EL1H => true,
        AARCH32_USER => id.has_aarch32_el0(),
        _ => false,
    }
}
