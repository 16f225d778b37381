//! What a handler is given of the guest, and what it wants done when it returns.

use crate::el2::base::registers::{read_register, write_register};
use crate::el2::exits::inject;
use core::mem::MaybeUninit;

/// What vectors.S saves on every exit: what a procedure call may change.
#[repr(C)]
pub struct Frame {
    /// x0 to x18.
    pub x: [u64; 19],
    lr: u64,
    /// Room for x19 to x29, which are still in their registers, and for alignment.
    rest: [MaybeUninit<u64>; 12],
}

/// All of the guest's general-purpose registers, where a handler has asked for them.
#[repr(C)]
pub struct Registers {
    low: [u64; 19],
    lr: u64,
    high: [u64; 11],
    padding: u64,
}

const _: () = assert!(size_of::<Frame>() == size_of::<Registers>() && size_of::<Frame>() == 256);

impl Registers {
    fn slot(&mut self, number: u32) -> Option<&mut u64> {
        match number {
            0..=18 => self.low.get_mut(number as usize),
            30 => Some(&mut self.lr),
            _ => self.high.get_mut((number as usize).wrapping_sub(19)),
        }
    }

    /// x0 to x30.
    pub fn all(&mut self) -> [u64; 31] {
        core::array::from_fn(|number| self.get(number as u32))
    }

    /// Xn; register 31 is XZR.
    pub fn get(&mut self, number: u32) -> u64 {
        self.slot(number).map_or(0, |slot| *slot)
    }

    /// Sets Xn; register 31 is XZR.
    pub fn set(&mut self, number: u32, value: u64) {
        if let Some(slot) = self.slot(number) {
            *slot = value;
        }
    }
}

/// What a handler wants done when it returns.
#[repr(transparent)]
pub struct Next(Option<extern "C" fn(&mut Registers)>);

impl Next {
    /// The guest goes on.
    pub const RESUME: Self = Self(None);

    /// Whether the guest goes on at once.
    pub const fn is_resume(&self) -> bool {
        self.0.is_none()
    }

    /// The function is called with all registers, then the guest goes on.
    #[inline(always)]
    pub fn with_all_registers(function: extern "C" fn(&mut Registers)) -> Self {
        Self(Some(function))
    }
}

/// Goes on behind the instruction that was trapped, as if it had been executed.
pub fn skip_instruction(esr: u64) {
    /// SPSR_EL2.BTYPE and SS, which executing an instruction clears.
    const BTYPE_SS: u64 = 3 << 10 | 1 << 21;
    let bytes = if esr & inject::LONG_INSTRUCTION != 0 { 4 } else { 2 };
    write_register!("elr_el2", read_register!("elr_el2").wrapping_add(bytes));
    write_register!("spsr_el2", read_register!("spsr_el2") & !BTYPE_SS);
}
