//! GICv3: distributor and redistributors, which any CPU reaches (Arm IHI 0069, 12.9 and 12.11).

use crate::el2::base::firmware::wait_until;
use crate::el2::saving::error::Error;
use crate::el2::saving::gic::register::{CLEAR, How, Register, load, store};
use alloc::vec::Vec;
use hypervisor::machine::GicV3;
use hypervisor::redistributor;

/// GICD_CTLR, GICR_CTLR.
const CTLR: u64 = 0;
/// GICR_CTLR.RWP: a write is still on its way.
const GICR_RWP: u64 = 1 << 3;
const TYPER: u64 = 0x4;
const WAKER: u64 = 0x14;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
const ISACTIVER: u64 = 0x300;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;
/// From RD_base to SGI_base, and from one redistributor to the next.
const SGI_BASE: u64 = 64 << 10;
/// Frames of a redistributor without and with virtual LPIs.
const FRAMES: [u64; 2] = [2 * SGI_BASE, 4 * SGI_BASE];

/// The registers of a GICv3 that EL2 has mapped.
pub struct V3 {
    distributor: u64,
    /// Shared interrupts, in words of 32.
    words: u64,
    /// Affinity and RD_base of each.
    redistributors: Vec<(u64, u64)>,
}

impl V3 {
    /// Finds the redistributors; nothing of the guest's runs yet.
    ///
    /// # Errors
    ///
    /// Where it has interrupts that are not saved.
    pub fn new(gic: &GicV3) -> Result<Self, Error> {
        /// GICD_TYPER.ITLinesNumber and ESPI.
        const LINES: u64 = 0x1f;
        const ESPI: u64 = 1 << 8;
        let distributor = gic.distributor.start();
        let typer = load(distributor + TYPER, 4);
        if typer & ESPI != 0 {
            return Err(Error::Said("the GIC has extended interrupts (FEAT_GICv3p1), which are not saved"));
        }
        let mut redistributors = Vec::new();
        for region in &gic.redistributors {
            let mut base = region.start();
            while base + FRAMES[0] <= region.end()
                && redistributor::is_redistributor(load(base + redistributor::PIDR2, 4))
            {
                let typer = load(base + redistributor::TYPER, 8);
                let affinity = typer >> 32;
                redistributors.push((affinity & 0xff_ffff | (affinity >> 24) << 32, base));
                if redistributor::is_last(typer) {
                    break;
                }
                let size = FRAMES[usize::from(redistributor::has_virtual_lpis(typer))];
                base += gic.redistributor_stride.unwrap_or(0).max(size);
            }
        }
        // Those from 1020 on are special; the last word has registers for them all the same.
        Ok(Self { distributor, words: typer & LINES, redistributors })
    }

    /// Every register that is saved, in the order in which they are restored.
    pub fn each(&self, act: &mut dyn FnMut(Register)) {
        let mut at = |name, address, bytes, how| act(Register { name, address, bytes, how });
        let gicd = self.distributor;
        at("GICD_CTLR", gicd + CTLR, 4, How::Disabled);
        for word in 1..=self.words {
            let configuration = gicd + ICFGR + word * 8;
            at("GICD_IGROUPR", gicd + IGROUPR + word * 4, 4, How::Write);
            at("GICD_ICFGR", configuration, 4, How::Write);
            at("GICD_ICFGR", configuration + 4, 4, How::Write);
            for four in 0..8 {
                at("GICD_IPRIORITYR", gicd + IPRIORITYR + word * 32 + four * 4, 4, How::Write);
            }
            for interrupt in word * 32..(word * 32 + 32).min(1020) {
                at("GICD_IROUTER", gicd + IROUTER + interrupt * 8, 8, How::Write);
            }
            at("GICD_ISENABLER", gicd + ISENABLER + word * 4, 4, How::Set);
            at("GICD_ISACTIVER", gicd + ISACTIVER + word * 4, 4, How::Set);
            at("GICD_ISPENDR", gicd + ISPENDR + word * 4, 4, How::SetEdges { configuration });
        }
        for &(_, base) in &self.redistributors {
            let sgi = base + SGI_BASE;
            at("GICR_WAKER", base + WAKER, 4, How::Write);
            at("GICR_IGROUPR0", sgi + IGROUPR, 4, How::Write);
            at("GICR_ICFGR1", sgi + ICFGR + 4, 4, How::Write);
            for four in 0..8 {
                at("GICR_IPRIORITYR", sgi + IPRIORITYR + four * 4, 4, How::Write);
            }
            at("GICR_ISENABLER0", sgi + ISENABLER, 4, How::Set);
            at("GICR_ISACTIVER0", sgi + ISACTIVER, 4, How::Set);
            at("GICR_ISPENDR0", sgi + ISPENDR, 4, How::SetEdges { configuration: sgi + ICFGR });
        }
        at("GICD_CTLR", gicd + CTLR, 4, How::Write);
    }

    /// The redistributor of the CPU with these affinity fields.
    fn redistributor(&self, mpidr: u64) -> Option<u64> {
        self.redistributors.iter().find(|(affinity, _)| *affinity == mpidr).map(|&(_, base)| base)
    }

    /// Wakes the CPU with these affinity fields, which executes nothing before it comes to EL2: makes an SGI pending that the
    /// guest has disabled. Nothing where there is none, or it does not take.
    pub fn kick(&self, mpidr: u64) -> Option<Kick> {
        let sgi = self.redistributor(mpidr)? + SGI_BASE;
        let [enabled, pending, active] = [ISENABLER, ISPENDR, ISACTIVER].map(|register| load(sgi + register, 4));
        let number = (0..16).rev().find(|number| (enabled | pending | active) >> number & 1 == 0)?;
        let kick = Kick { sgi, number, group: load(sgi + IGROUPR, 4), priority: load(sgi + IPRIORITYR + number, 1) };
        store(sgi + IGROUPR, 4, kick.group | 1 << number);
        // The highest: no mask of priorities keeps it away, unless that keeps all away.
        store(sgi + IPRIORITYR + number, 1, 0);
        store(sgi + ISENABLER, 4, 1 << number);
        store(sgi + ISPENDR, 4, 1 << number);
        // An interrupt that is Secure reads as 0, whatever was written.
        let took = [IGROUPR, ISENABLER, ISPENDR].into_iter().all(|register| load(sgi + register, 4) >> number & 1 != 0);
        if !took {
            kick.undo();
            return None;
        }
        Some(kick)
    }
}

/// An SGI that was made pending to wake a CPU.
pub struct Kick {
    sgi: u64,
    number: u64,
    group: u64,
    priority: u64,
}

impl Kick {
    /// Takes it back, and all that it needed: where the guest did not mask it, what it finds is spurious.
    pub fn undo(self) {
        let Self { sgi, number, group, priority } = self;
        store(sgi + ISPENDR + CLEAR, 4, 1 << number);
        store(sgi + ISENABLER + CLEAR, 4, 1 << number);
        // Its disabling has taken effect before its priority is anything else.
        let _ = wait_until(|| load(sgi - SGI_BASE + CTLR, 4) & GICR_RWP == 0);
        store(sgi + IPRIORITYR + number, 1, priority);
        store(sgi + IGROUPR, 4, group);
    }
}
