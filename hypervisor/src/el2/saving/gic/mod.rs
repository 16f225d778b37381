//! The interrupt controller's state, and the interrupt that wakes a CPU.
//!
//! One walk over all registers is used to save and to restore, so that what is in a file is values alone.

mod register;
mod v2;
mod v3;

use crate::el2::saving::error::{Error, room};
use alloc::vec::Vec;
use hypervisor::machine;
use register::Register;
pub use v2::BANKED;
use v2::V2;
use v3::{Kick, V3};

/// The controller.
pub enum Gic {
    /// A GICv2.
    V2(V2),
    /// A GICv3.
    V3(V3),
}

/// A CPU that was woken.
pub enum Woken {
    /// It takes back itself what has woken it.
    V2,
    /// What has woken it.
    V3(Kick),
}

impl Gic {
    /// The machine's; nothing of the guest's runs yet.
    ///
    /// # Errors
    ///
    /// Where it has interrupts that are not saved.
    pub fn new(gic: &machine::Gic) -> Result<Self, Error> {
        match gic {
            machine::Gic::V2(gic) => V2::new(gic).map(Self::V2),
            machine::Gic::V3(gic) => V3::new(gic).map(Self::V3),
        }
    }

    fn each(&self, act: &mut dyn FnMut(Register)) {
        match self {
            Self::V2(gic) => gic.each(act),
            Self::V3(gic) => gic.each(act),
        }
    }

    /// Bytes of what CPUs share.
    fn bytes(&self) -> usize {
        let mut count = 0;
        self.each(&mut |_| count += 1);
        count * size_of::<u64>()
    }

    /// The values of all that CPUs share, each as 8 bytes, little-endian.
    ///
    /// # Errors
    ///
    /// Where there is no memory for them.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        let mut values = room(self.bytes())?;
        self.each(&mut |register| values.extend(register.save().to_le_bytes()));
        Ok(values)
    }

    /// Whether these can be given back.
    ///
    /// # Errors
    ///
    /// Where there are more or fewer than registers.
    pub fn check(&self, values: &[u8]) -> Result<(), Error> {
        let wrong = Error::Said("the file's interrupt controller has other registers than this machine's");
        if values.len() == self.bytes() { Ok(()) } else { Err(wrong) }
    }

    /// Gives them back to a controller that nothing has used. The values may be anything: they reach these registers alone.
    ///
    /// # Errors
    ///
    /// Those of [`Gic::check`]; nothing has changed.
    pub fn restore(&self, values: &[u8]) -> Result<(), Error> {
        self.check(values)?;
        let mut values = values.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        self.each(&mut |register| register.restore(values.next().unwrap_or(0)));
        Ok(())
    }

    /// What the executing CPU has for itself, but for what the CPU with the bit `source` wakes it with.
    pub fn save_own(&self, source: u64, values: &mut [u64; BANKED]) {
        let Self::V2(gic) = self else { return };
        let mut values = values.iter_mut();
        gic.each_banked(&mut |register| {
            if let Some(value) = values.next() {
                *value = gic.without_kick(&register, register.save(), source);
            }
        });
    }

    /// Gives it back.
    pub fn restore_own(&self, values: &[u64; BANKED]) {
        let Self::V2(gic) = self else { return };
        let mut values = values.iter();
        gic.each_banked(&mut |register| register.restore(values.next().copied().unwrap_or(0)));
    }

    /// The bit that stands for the executing CPU, where it needs one to be woken.
    pub fn target(&self) -> u64 {
        match self {
            Self::V2(gic) => gic.target(),
            Self::V3(_) => 0,
        }
    }

    /// Wakes the CPU with these affinity fields and this bit, which executes nothing before it comes to EL2. Nothing where
    /// it does not take.
    pub fn wake(&self, mpidr: u64, target: u64) -> Option<Woken> {
        match self {
            Self::V2(gic) => {
                gic.kick(target);
                Some(Woken::V2)
            }
            Self::V3(gic) => gic.kick(mpidr).map(Woken::V3),
        }
    }

    /// On the CPU itself, when it has come: takes back what the CPU with the bit `source` may have woken it with.
    pub fn is_awake(&self, source: u64) {
        if let Self::V2(gic) = self {
            gic.unkick(source);
        }
    }
}

impl Woken {
    /// Takes it back, and all that it needed: where the guest did not mask it, what it finds is spurious.
    pub fn undo(self) {
        if let Self::V3(kick) = self {
            kick.undo();
        }
    }
}
