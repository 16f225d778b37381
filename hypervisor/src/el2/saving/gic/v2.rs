//! GICv2: the distributor, part of which each CPU has for itself, and the CPU interfaces (Arm IHI 0048, 4.3 and 4.4).

use crate::el2::saving::error::Error;
use crate::el2::saving::gic::register::{How, Register, load, store};
use hypervisor::machine::GicV2;

const CTLR: u64 = 0;
const TYPER: u64 = 0x4;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
const ISACTIVER: u64 = 0x300;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
const ICFGR: u64 = 0xc00;
const SGIR: u64 = 0xf00;
const CPENDSGIR: u64 = 0xf10;
const SPENDSGIR: u64 = 0xf20;
/// The SGI that wakes a CPU. Linux uses 0 to 7, and firmware 8 and up for itself alone.
const KICK: u64 = 15;

/// The registers of a GICv2 that EL2 has mapped.
pub struct V2 {
    distributor: u64,
    cpu_interface: u64,
    /// Shared interrupts, in words of 32.
    words: u64,
}

/// Words of what a CPU has for itself.
pub const BANKED: usize = 24;

impl V2 {
    /// Those of `gic`.
    ///
    /// # Errors
    ///
    /// None yet.
    pub fn new(gic: &GicV2) -> Result<Self, Error> {
        /// GICD_TYPER.ITLinesNumber.
        const LINES: u64 = 0x1f;
        let distributor = gic.distributor.start();
        let words = load(distributor + TYPER, 4) & LINES;
        Ok(Self { distributor, cpu_interface: gic.cpu_interface.start(), words })
    }

    /// Every register that all CPUs share, in the order in which they are restored.
    pub fn each(&self, act: &mut dyn FnMut(Register)) {
        let mut at = |name, address, how| act(Register { name, address, bytes: 4, how });
        let gicd = self.distributor;
        at("GICD_CTLR", gicd + CTLR, How::Disabled);
        for word in 1..=self.words {
            let configuration = gicd + ICFGR + word * 8;
            at("GICD_IGROUPR", gicd + IGROUPR + word * 4, How::Write);
            at("GICD_ICFGR", configuration, How::Write);
            at("GICD_ICFGR", configuration + 4, How::Write);
            for four in 0..8 {
                at("GICD_IPRIORITYR", gicd + IPRIORITYR + word * 32 + four * 4, How::Write);
                at("GICD_ITARGETSR", gicd + ITARGETSR + word * 32 + four * 4, How::Write);
            }
            at("GICD_ISENABLER", gicd + ISENABLER + word * 4, How::Set);
            at("GICD_ISACTIVER", gicd + ISACTIVER + word * 4, How::Set);
            at("GICD_ISPENDR", gicd + ISPENDR + word * 4, How::SetEdges { configuration });
        }
        at("GICD_CTLR", gicd + CTLR, How::Write);
    }

    /// Every register that the executing CPU has for itself: [`BANKED`] of them.
    pub fn each_banked(&self, act: &mut dyn FnMut(Register)) {
        let mut at = |name, address, how| act(Register { name, address, bytes: 4, how });
        let (gicd, gicc) = (self.distributor, self.cpu_interface);
        at("GICD_IGROUPR0", gicd + IGROUPR, How::Write);
        for four in 0..8 {
            at("GICD_IPRIORITYR0", gicd + IPRIORITYR + four * 4, How::Write);
        }
        at("GICD_ISENABLER0", gicd + ISENABLER, How::Set);
        at("GICD_ISACTIVER0", gicd + ISACTIVER, How::Set);
        for four in 0..4 {
            at("GICD_SPENDSGIR", gicd + SPENDSGIR + four * 4, How::SetBytes);
        }
        at("GICC_PMR", gicc + 0x04, How::Write);
        at("GICC_BPR", gicc + 0x08, How::Write);
        at("GICC_ABPR", gicc + 0x1c, How::Write);
        for number in 0..4 {
            at("GICC_APR", gicc + 0xd0 + number * 4, How::Write);
        }
        at("GICC_NSAPR", gicc + 0xe0, How::Write);
        at("GICC_CTLR", gicc + CTLR, How::Write);
    }

    /// The bit that stands for the executing CPU in the distributor's lists of targets. One CPU alone has none.
    pub fn target(&self) -> u64 {
        (load(self.distributor + ITARGETSR, 4) & 0xff).max(1)
    }

    /// Sends the CPU with this bit the SGI that wakes it.
    pub fn kick(&self, target: u64) {
        store(self.distributor + SGIR, 4, target << 16 | KICK);
    }

    /// The value of a register of [`V2::each_banked`] without the SGI that the CPU with the bit `source` wakes others with: it may come
    /// while the CPU that it is for has arrived by itself and writes down what it has.
    pub fn without_kick(&self, register: &Register, value: u64, source: u64) -> u64 {
        let kicks = self.distributor + SPENDSGIR + (KICK & !3);
        if register.address == kicks { value & !(source << (KICK % 4 * 8)) } else { value }
    }

    /// Takes back what the CPU with the bit `source` has sent to the executing one to wake it. What others have sent stays.
    pub fn unkick(&self, source: u64) {
        store(self.distributor + CPENDSGIR + KICK, 1, source);
    }
}
