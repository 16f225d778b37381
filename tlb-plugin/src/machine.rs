//! The guest's model, and the windows in which it counts.

use crate::api::{Buffer, Register};
use crate::ram::Ram;
use crate::settings::Settings;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use tlb_model::{Access, Answer, Census, Core, Invalidation, Problem, Record, Registers, Sizes, census};

/// The window that is open from the guest's first instruction on.
pub const BOOT: u64 = 0;
/// One of so many hits of the level-1 TLB is compared with QEMU's own translation; all others are.
const SAMPLE: u64 = 64;

/// Handles of the registers that are read.
struct Handles {
    general: Vec<Option<Register>>,
    cpsr: Register,
    pc: Register,
    /// In the order of [`Handles::NAMES`].
    system: Vec<Option<Register>>,
}

impl Handles {
    /// What QEMU calls the fields of [`Registers`].
    const NAMES: [&str; 7] = ["SCTLR", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "HCR_EL2", "VTCR_EL2", "VTTBR_EL2"];

    fn of(all: Vec<(String, Register)>) -> Result<Self, String> {
        let all: HashMap<String, Register> = all.into_iter().collect();
        let named = |name: &str| all.get(name).copied();
        let system: Vec<_> = Self::NAMES.iter().map(|name| named(name)).collect();
        if let Some((name, _)) = Self::NAMES.iter().zip(&system).take(4).find(|(_, register)| register.is_none()) {
            return Err(format!("QEMU does not show the register {name}"));
        }
        Ok(Self {
            general: (0..31).map(|number| named(&format!("x{number}"))).collect(),
            cpsr: named("cpsr").ok_or("QEMU does not show the register cpsr")?,
            pc: named("pc").ok_or("QEMU does not show the register pc")?,
            system,
        })
    }
}

/// All of it. The guest has one vCPU: where several take turns (`-icount`), QEMU 10 gives callbacks the number of the one that
/// the code was translated for, which need not be the one that executes it.
pub struct Machine {
    ram: Ram,
    out: File,
    sizes: Sizes,
    handles: Option<Handles>,
    buffer: Buffer,
    core: Core,
    /// The model's registers may not be the vCPU's.
    is_stale: bool,
    /// Where the block of instructions that the guest executes begins.
    block: u64,
    /// Executed at EL0 and EL1 since the window was opened.
    instructions: [u64; 2],
    /// The window that is open, and stage 2 as it was then.
    window: Option<(u64, Census)>,
    is_watching: bool,
    accesses: u64,
    compared: u64,
    different: u64,
    problem: Option<String>,
}

impl Machine {
    /// One whose windows are closed, or with the one of the boot open.
    ///
    /// # Errors
    /// If RAM can't be mapped, or the file of records can't be made.
    pub fn new(settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            ram: Ram::map(&settings.ram, settings.base)?,
            out: File::create(&settings.out)?,
            sizes: settings.sizes,
            handles: None,
            buffer: Buffer::new().ok_or(io::ErrorKind::OutOfMemory)?,
            core: Core::new(settings.sizes),
            is_stale: true,
            block: 0,
            instructions: [0; 2],
            window: settings.boot.then(|| (BOOT, Census::default())),
            is_watching: settings.boot,
            accesses: 0,
            compared: 0,
            different: 0,
            problem: None,
        })
    }

    /// Whether code that is translated now is to be watched.
    pub fn is_watching(&self) -> bool {
        self.is_watching
    }

    /// A block of so many instructions is executed.
    pub fn count(&mut self, level: u64, instructions: u64) {
        if let Some(count) = self.instructions.get_mut(level as usize) {
            *count += instructions;
        }
    }

    /// The exception level of the executing vCPU.
    pub fn level(&mut self) -> Option<u64> {
        if self.handles.is_none() {
            match Handles::of(crate::api::registers()) {
                Ok(handles) => self.handles = Some(handles),
                // Nothing is watched, so no record could tell it.
                Err(problem) if self.problem.is_none() => {
                    eprintln!("tlb-plugin: {problem}");
                    self.note(problem);
                }
                Err(_) => {}
            }
        }
        let cpsr = self.handles.as_ref()?.cpsr;
        self.buffer.read(cpsr).map(|cpsr| cpsr >> 2 & 3)
    }

    /// A general-purpose register of the executing vCPU; 31 is the zero register.
    pub fn general(&mut self, number: u8) -> u64 {
        let register = self.handles.as_ref().and_then(|handles| *handles.general.get(usize::from(number))?);
        register.and_then(|register| self.buffer.read(register)).unwrap_or(0)
    }

    /// The registers that translate may be others from the next instruction on.
    pub fn registers_change(&mut self) {
        self.is_stale = true;
    }

    /// Reads them, if need be. The guest executes.
    pub fn read_registers(&mut self) {
        if !self.is_stale {
            return;
        }
        let Some(handles) = &self.handles else { return };
        let mut read = |at: usize| handles.system[at].and_then(|register| self.buffer.read(register)).unwrap_or(0);
        let registers = Registers {
            sctlr: read(0),
            tcr: read(1),
            ttbr0: read(2),
            ttbr1: read(3),
            hcr: read(4),
            vtcr: read(5),
            vttbr: read(6),
        };
        self.core.set_registers(registers);
        self.is_stale = false;
    }

    /// The virtual address `offset` bytes behind the start of the block that the guest executes. At its start, QEMU's PC is
    /// exact; later in a block it need not be.
    pub fn block_address(&mut self, offset: u64) -> u64 {
        if offset == 0
            && let Some(pc) = self.handles.as_ref().map(|handles| handles.pc)
        {
            self.block = self.buffer.read(pc).unwrap_or(0);
        }
        self.block.wrapping_add(offset)
    }

    /// An access, and how to ask for QEMU's own translation of it.
    pub fn access(&mut self, access: Access, physical: impl FnOnce() -> Option<u64>) {
        let address = match self.core.access(access, &self.ram) {
            Ok(Answer::L1(address)) => {
                self.accesses += 1;
                if !self.accesses.is_multiple_of(SAMPLE) {
                    return;
                }
                address
            }
            Ok(Answer::L2(address) | Answer::Walk(address)) => address,
            Err(problem @ Problem::Unknown(_)) => return self.note(problem.to_string()),
            // Counted by the model.
            Err(Problem::Invalid { .. } | Problem::Unreadable { .. }) => return,
        };
        if let Some(physical) = physical() {
            self.compared += 1;
            if physical != address {
                self.different += 1;
                self.note(format!("{access:x?}: QEMU has {physical:#x}, the model {address:#x}"));
            }
        }
    }

    /// A TLBI, of the guest's or of EL2's. A local one of a CPU that EL2 has kept for itself counts too: there is hardly any.
    pub fn invalidate(&mut self, what: Invalidation) {
        self.core.invalidate(what);
    }

    /// The first thing that makes the figures worth nothing.
    fn note(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// From now on everything is watched, by TLBs that know nothing.
    pub fn watch(&mut self) {
        self.is_watching = true;
        self.core = Core::new(self.sizes);
        self.is_stale = true;
    }

    /// Begins to count.
    pub fn open(&mut self, window: u64) {
        self.instructions = [0; 2];
        (self.compared, self.different, self.problem) = (0, 0, None);
        self.read_registers();
        self.core.start_counting();
        let before = self.census();
        self.window = Some((window, before));
    }

    /// Writes down what was counted, and watches no more.
    pub fn close(&mut self) {
        self.is_watching = false;
        let Some((window, before)) = self.window.take() else { return };
        let after = self.census();
        let record = Record {
            window,
            instructions: self.instructions,
            counts: self.core.counts(),
            before,
            after,
            compared: self.compared,
            different: self.different,
            problem: self.problem.take(),
        };
        let written = serde_json::to_vec(&record).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.out.write_all(&line)
        });
        if let Err(error) = written {
            eprintln!("tlb-plugin: can't write a record: {error}");
        }
    }

    fn census(&mut self) -> Census {
        census(self.core.registers(), &self.ram).unwrap_or_else(|problem| {
            self.note(problem.to_string());
            Census::default()
        })
    }
}
