//! A partition's execution context on one CPU: its registers, and how it runs.

use core::arch::{asm, global_asm};
use secure_partition::service::REGISTERS;

global_asm!(include_str!("vectors.S"));

unsafe extern "C" {
    fn enter_context(context: *mut Context) -> u64;
}

/// EL1h, all interrupts masked.
const SPSR_EL1H_MASKED: u64 = 0x3c5;

/// EL1's registers that a context may change without a trap.
macro_rules! el1_registers {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        #[repr(C)]
        struct El1Registers {
            $($name: u64,)*
        }

        impl El1Registers {
            fn save(&mut self) {
                // SAFETY: reading these registers has no effect.
                $(unsafe { asm!(concat!("mrs {}, ", stringify!($name)), out(reg) self.$name, options(nomem, nostack)) };)*
            }

            fn load(&self) {
                // SAFETY: they mean nothing at EL2; the exception return synchronises them.
                $(unsafe { asm!(concat!("msr ", stringify!($name), ", {}"), in(reg) self.$name, options(nomem, nostack)) };)*
            }
        }
    };
}

el1_registers!(
    sctlr_el1,
    cpacr_el1,
    ttbr0_el1,
    ttbr1_el1,
    tcr_el1,
    mair_el1,
    amair_el1,
    vbar_el1,
    esr_el1,
    far_el1,
    afsr0_el1,
    afsr1_el1,
    elr_el1,
    spsr_el1,
    sp_el0,
    sp_el1,
    tpidr_el0,
    tpidrro_el0,
    tpidr_el1,
    contextidr_el1,
    par_el1,
    cntkctl_el1,
    mdscr_el1,
    csselr_el1
);

/// Why a context stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A call, an abort, a trap: ESR_EL2 says which.
    Synchronous {
        /// ESR_EL2.
        esr: u64,
        /// FAR_EL2.
        far: u64,
    },
    /// An interrupt or an error, which nothing on this machine should cause.
    Asynchronous,
}

/// The registers.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    /// x0 to x30.
    pub registers: [u64; 31],
    /// Where it goes on.
    pub pc: u64,
    /// Its processor state.
    pstate: u64,
    el1: El1Registers,
}

impl Context {
    /// A context that begins at `entry` with `arguments` in its first registers.
    pub fn new(entry: u64, arguments: [u64; 3]) -> Self {
        const SCTLR_EL1_RES1: u64 = 0x30d0_0800;
        let mut registers = [0; 31];
        registers[..3].copy_from_slice(&arguments);
        let el1 = El1Registers { sctlr_el1: SCTLR_EL1_RES1, ..El1Registers::default() };
        Self { registers, pc: entry, pstate: SPSR_EL1H_MASKED, el1 }
    }

    /// Runs until something is taken to S-EL2. The partition's tables are loaded.
    pub fn run(&mut self) -> Exit {
        // SAFETY: the context is exclusively ours; the partition can reach what its tables say, which is not the SPM.
        let why = unsafe { enter_context(self) };
        if why != 0 {
            return Exit::Asynchronous;
        }
        let (esr, far);
        // SAFETY: reading the registers has no effect.
        unsafe {
            asm!("mrs {}, esr_el2", "mrs {}, far_el2", out(reg) esr, out(reg) far, options(nomem, nostack));
        }
        Exit::Synchronous { esr, far }
    }

    /// Makes this CPU's EL1 registers the context's.
    pub fn load(&self) {
        self.el1.load();
    }

    /// Takes this CPU's EL1 registers into the context.
    pub fn save(&mut self) {
        self.el1.save();
    }

    /// The registers of a call.
    pub fn call(&self) -> [u64; REGISTERS] {
        core::array::from_fn(|n| self.registers[n])
    }

    /// Gives the context an answer to its call.
    pub fn answer(&mut self, registers: &[u64; REGISTERS]) {
        self.registers[..REGISTERS].copy_from_slice(registers);
    }

    /// Goes on past the SMC that was trapped: unlike after an HVC, the return address is the SMC's own.
    pub fn step_over(&mut self) {
        self.pc += 4;
    }

    /// Has the context, which is loaded, take a synchronous external abort for an access that it may not make.
    pub fn inject_abort(&mut self, esr: u64, far: u64) {
        const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
        const INSTRUCTION_ABORT_SAME: u64 = 0x21 << 26;
        const DATA_ABORT_SAME: u64 = 0x25 << 26;
        const EXTERNAL: u64 = 0x10;
        const WNR: u64 = 1 << 6;
        let class = match esr >> 26 & 0x3f {
            INSTRUCTION_ABORT_LOWER => INSTRUCTION_ABORT_SAME,
            _ => DATA_ABORT_SAME | esr & WNR,
        };
        self.inject(class | EXTERNAL, far);
    }

    /// Has the context, which is loaded, take the exception for an instruction that it does not have.
    pub fn inject_undefined(&mut self) {
        self.inject(0, 0);
    }

    fn inject(&mut self, esr: u64, far: u64) {
        const IL: u64 = 1 << 25;
        const CURRENT_SPX: u64 = 0x200;
        self.save();
        self.el1.esr_el1 = esr | IL;
        self.el1.far_el1 = far;
        self.el1.elr_el1 = self.pc;
        self.el1.spsr_el1 = self.pstate;
        self.load();
        self.pc = self.el1.vbar_el1.wrapping_add(CURRENT_SPX);
        self.pstate = SPSR_EL1H_MASKED;
    }
}
