//! What this machine is, to compare with where a guest was saved.

use crate::el2::base::cpu;
use crate::el2::base::registers::read_register;
use alloc::vec::Vec;
use hypervisor::machine::{Gic, Machine};
use hypervisor::options::Options;
use hypervisor::range::PhysRange;
use hypervisor_abi::saved::{CPU_REGISTERS, Fact, Field, version_word};

/// The version of the [`items`](crate::el2::saving::Item) that this hypervisor writes and reads.
const STATE: u64 = 1;

/// The facts of a machine whose guest has this memory, and not the CPU `withheld`.
pub fn of(machine: &Machine, options: &Options, memory: &[PhysRange], withheld: u64) -> Vec<Fact> {
    let start = |registers: Option<PhysRange>| registers.map_or(0, |registers| registers.start());
    let gic = match &machine.gic {
        Gic::V2(_) => 2,
        Gic::V3(_) => 3,
    };
    let mut facts = Vec::from([
        Fact::new(Field::Version, version_word(env!("CARGO_PKG_VERSION"))),
        Fact::new(Field::State, STATE),
        Fact::new(Field::Ranges, memory.len() as u64),
    ]);
    for (index, range) in (0..).zip(memory) {
        facts.push(Fact::numbered(Field::RamStart, index, range.start()));
        facts.push(Fact::numbered(Field::RamEnd, index, range.end()));
    }
    facts.extend([
        Fact::new(Field::Frequency, read_register!("cntfrq_el0")),
        Fact::new(Field::Gic, gic),
        Fact::new(Field::Distributor, machine.gic.distributor().start()),
        Fact::new(Field::Console, start(machine.uart.as_ref().map(|uart| uart.device.registers))),
        Fact::new(Field::Clock, start(machine.rtc.as_ref().map(|rtc| rtc.registers))),
        Fact::new(Field::Manager, withheld),
        Fact::new(Field::Devices, options.mediate.len() as u64),
    ]);
    facts.extend((0..).zip(&options.mediate).map(|(index, &device)| Fact::numbered(Field::Device, index, device)));
    facts.push(Fact::new(Field::Cpus, cpu::all().count() as u64));
    for (index, id) in (0..).zip(cpu::all().filter_map(|area| area.cpu.id.get())) {
        let registers: [u64; CPU_REGISTERS.len()] = [
            id.midr, id.mpidr, id.pfr0, id.pfr1, id.zfr0, id.smfr0, id.dfr0, id.isar0, id.isar1, id.isar2, id.mmfr0,
            id.mmfr1, id.mmfr2,
        ];
        facts.extend((0..).zip(registers).map(|(register, value)| Fact::of_cpu(index, register, value)));
    }
    facts
}
