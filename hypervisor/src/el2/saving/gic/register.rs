//! One register of an interrupt controller: how it is saved, and how it gets its value back.

use crate::el2::base::device;
use crate::el2::base::firmware::wait_until;
use crate::el2::saving::left_out::left_out;

/// From a register that sets bits to the one that clears them.
pub const CLEAR: u64 = 0x80;
/// GICD_CTLR.RWP of GICv3: a write is still on its way. 0 in GICv2.
const RWP: u64 = 1 << 31;
/// GICD_CTLR's enables, in every view of it.
const ENABLES: u64 = 7;

/// How a register gets its value back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is written.
    Write,
    /// Its twin clears all, then it sets what was set.
    Set,
    /// Likewise; of an interrupt that follows a level, the level says whether it is pending.
    SetEdges {
        /// The first of the two ICFGR for these interrupts.
        configuration: u64,
    },
    /// GICD_SPENDSGIR: the register 0x10 before it clears.
    SetBytes,
    /// GICD_CTLR without its enables: affinity routing, before all else.
    Disabled,
}

/// One register.
pub struct Register {
    /// As its manual has it, without a number.
    pub name: &'static str,
    /// Where it is.
    pub address: u64,
    /// 4 or 8.
    pub bytes: u8,
    /// How it gets its value back.
    pub how: How,
}

/// Loads a register.
pub fn load(address: u64, bytes: u8) -> u64 {
    // SAFETY: an address of a walk's: a GIC's register that reading does nothing to. EL2 has mapped it.
    unsafe { device::load(address, bytes) }.unwrap_or(0)
}

/// Stores to one.
pub fn store(address: u64, bytes: u8, value: u64) {
    // SAFETY: as above; without LPIs, which are not enabled, no register makes the GIC write memory.
    let _ = unsafe { device::store(address, bytes, value) };
}

impl Register {
    /// Its value as it is saved.
    pub fn save(&self) -> u64 {
        let value = load(self.address, self.bytes);
        match self.how {
            How::SetEdges { configuration } => value & edges(configuration),
            _ => value,
        }
    }

    /// Gives it back to a controller that nothing has used. It may be anything: it reaches this register alone.
    pub fn restore(&self, value: u64) {
        let &Self { name, address, bytes, how } = self;
        if left_out(name) {
            return;
        }
        match how {
            How::Write => store(address, bytes, value),
            How::Disabled => store(address, bytes, value & !ENABLES),
            How::SetBytes => {
                store(address - 0x10, bytes, u64::MAX);
                // Only those that are pending: a 0 that is written makes QEMU's model take an SGI for pending that nobody has sent,
                // and it ends in an assertion when a CPU acknowledges that.
                let pending = (0..).zip(value.to_le_bytes()).take(bytes.into()).filter(|&(_, senders)| senders != 0);
                pending.for_each(|(byte, senders)| store(address + byte, 1, senders.into()));
            }
            How::Set | How::SetEdges { .. } => {
                store(address + CLEAR, bytes, u64::MAX);
                store(address, bytes, value);
            }
        }
        if name == "GICD_CTLR" {
            let _ = wait_until(|| load(address, 4) & RWP == 0);
        }
    }
}

/// A bit for each of 32 interrupts that is triggered by an edge, as two ICFGR from `configuration` on have it.
fn edges(configuration: u64) -> u64 {
    let both = load(configuration, 4) | load(configuration + 4, 4) << 32;
    (0..32).filter(|interrupt| both >> (2 * interrupt + 1) & 1 != 0).map(|interrupt| 1 << interrupt).sum()
}
