//! Stage-2 aborts: the engine first, then the registers that EL2 guards, and what is left the guest hears of.

use crate::el2::base::registers::{read_register, write_register};
use crate::el2::base::{cpu, firmware};
use crate::el2::exits::frame::{Frame, Next, Registers, skip_instruction};
use crate::el2::exits::inject;
use crate::el2::guest_memory::{self, gic, watch};
use crate::el2::mediation::{self, Later};
use crate::el2::saving;
use hypervisor::exit_counts::Exit;
use hypervisor::granule::PAGE;
use hypervisor::injection::Exception;
use hypervisor::mmio::Access;
use stage2::{AccessKind, Ipa, Outcome, Syndrome, Taken, Untranslated};

/// Data aborts.
pub extern "C" fn data(_frame: &mut Frame, esr: u64) -> Next {
    answer(esr)
}

/// The same, for CPUs with FEAT_LSE.
#[target_feature(enable = "lse")]
pub extern "C" fn data_lse(_frame: &mut Frame, esr: u64) -> Next {
    answer(esr)
}

#[inline(always)]
fn answer(esr: u64) -> Next {
    if Syndrome::is_refused_store(esr) {
        let va = read_register!("far_el2");
        let ipa = match stage2::aarch64::translate_stage1_read(va) {
            Ok(ipa) => ipa,
            Err(why) => return untranslated(va, esr, why),
        };
        let page = ipa.align_down(PAGE);
        if guest_memory::fault::first_write(page, va) {
            // Counted as the engine's first write: see `cpu::PerCpu::exits`.
            return Next::RESUME;
        }
        return data_in_block(page, va, esr);
    }
    // All else, and what the above cannot settle, takes the long way.
    cpu::this_cpu().exits.count(Exit::DataAbort);
    handle(esr)
}

/// [`data`], where the page may be part of a block that has to be split first. A function of its own, so that the way of a
/// write to a page saves no register for it.
#[inline(never)]
fn data_in_block(page: Ipa, va: u64, esr: u64) -> Next {
    if guest_memory::fault::first_write_to_block(page, va) {
        return Next::RESUME;
    }
    cpu::this_cpu().exits.count(Exit::DataAbort);
    handle(esr)
}

/// Instruction aborts.
pub extern "C" fn instruction(_frame: &mut Frame, esr: u64) -> Next {
    cpu::this_cpu().exits.count(Exit::InstructionAbort);
    handle(esr)
}

/// [`data`], where the guest's own tables do not translate the address any more.
#[cold]
#[inline(never)]
fn untranslated(va: u64, esr: u64, why: Untranslated) -> Next {
    cpu::this_cpu().exits.count(Exit::DataAbort);
    if why == Untranslated::Exception {
        // EL2's own exception has left its syndrome and address in the registers.
        write_register!("esr_el2", esr);
        write_register!("far_el2", va);
    }
    settle(&Taken::Untranslated { va, why })
}

#[inline(never)]
fn handle(esr: u64) -> Next {
    // A mediated device's frame is never mapped: the engine has no answer for it.
    if Syndrome::decode(esr).as_ref().is_some_and(Syndrome::hpfar_is_valid)
        && mediation::has(ipa_from_hpfar(read_register!("far_el2")))
    {
        return Next::with_all_registers(mediated);
    }
    match stage2::aarch64::read_abort(esr) {
        Some(taken) => settle(&taken),
        None => Next::with_all_registers(unresolved),
    }
}

#[inline(always)]
fn settle(taken: &Taken) -> Next {
    match guest_memory::fault::answer(taken) {
        Outcome::Retry => Next::RESUME,
        Outcome::Frozen => Next::with_all_registers(frozen),
        Outcome::Denied if matches!(taken, Taken::Abort(abort) if watch::lets_through(abort)) => Next::RESUME,
        Outcome::Unmapped | Outcome::Denied | Outcome::Stuck => Next::with_all_registers(unresolved),
    }
}

/// The guest stands still: the CPU waits, and writes down what it has if it is to be saved.
#[cold]
#[inline(never)]
extern "C" fn frozen(registers: &mut Registers) {
    if saving::is_stopping() {
        return saving::arrive(&registers.all());
    }
    guest_memory::table().inspect(|table| table.wait_for_thaw(saving::is_stopping));
}

/// Where HPFAR_EL2 and FAR_EL2 say that the abort was. HPFAR_EL2 has bits 12 and up whatever the granule of stage 2: that of the
/// guest's stage 1 may be a smaller one, and then the virtual address has no more than the lowest 12 in common with the IPA.
fn ipa_from_hpfar(va: u64) -> Ipa {
    Ipa(stage2::fault::ipa_from_hpfar(read_register!("hpfar_el2")).0 | va & 0xfff)
}

/// Handles an abort that never happened, as if the registers said so; nothing if `esr` is no abort's. For tests: the
/// machines that they run on raise no TLB conflict aborts, and no stale entries.
pub fn inject(esr: u64, address: u64, ipa: Ipa) -> Option<()> {
    Syndrome::decode(esr)?;
    write_register!("esr_el2", esr);
    write_register!("far_el2", address);
    write_register!("hpfar_el2", ipa.0 >> 12 << 4);
    let next = handle(esr);
    // The guest stands still: its next access waits for that.
    (next.is_resume() || guest_memory::table().is_some_and(|table| table.read().is_frozen())).then_some(())
}

/// An access to the frame of a mediated device.
extern "C" fn mediated(registers: &mut Registers) {
    firmware::park_if_stopped();
    let (esr, va) = (read_register!("esr_el2"), read_register!("far_el2"));
    let ipa = ipa_from_hpfar(va);
    let done = Access::from_syndrome(esr).and_then(|access| {
        if access.write {
            return mediation::store(ipa, access.bytes, registers.get(access.register));
        }
        let value = mediation::load(ipa, access.bytes)?;
        Some(value.map(|value| registers.set(access.register, access.extend(value))))
    });
    match done {
        Some(Ok(())) => skip_instruction(esr),
        Some(Err(Later)) => later(registers, ipa),
        None => unresolved(registers),
    }
}

/// [`mediated`], where the access cannot be made now: the CPU waits, or writes down what it has, and makes it again.
#[cold]
#[inline(never)]
fn later(registers: &mut Registers, ipa: Ipa) {
    if saving::is_stopping() {
        return saving::arrive(&registers.all());
    }
    mediation::wait(ipa, saving::is_stopping);
}

/// An access that nothing is mapped for, or that is forbidden.
extern "C" fn unresolved(registers: &mut Registers) {
    firmware::park_if_stopped();
    let (esr, va) = (read_register!("esr_el2"), read_register!("far_el2"));
    if emulate(registers, esr, va).is_some() {
        return skip_instruction(esr);
    }
    let exception = match AccessKind::of(esr) {
        Some(AccessKind::Data { write, maintenance }) => Exception::DataAbort { write, maintenance },
        _ => Exception::InstructionAbort,
    };
    log::debug!(
        "guest: ESR_EL2 {esr:#x}, FAR_EL2 {va:#x}, HPFAR_EL2 {:#x}, ELR_EL2 {:#x}: external abort",
        read_register!("hpfar_el2"),
        read_register!("elr_el2")
    );
    inject::abort(exception, esr, va);
}

/// Carries out an access to registers that EL2 guards. Nothing if it is no such access, or one that the device does not answer:
/// an abort then reaches the guest as its own would have.
fn emulate(registers: &mut Registers, esr: u64, va: u64) -> Option<()> {
    // What is guarded is not mapped, so it is a translation fault, whose IPA is known.
    Syndrome::decode(esr).filter(Syndrome::hpfar_is_valid)?;
    let (access, ipa) = (Access::from_syndrome(esr)?, ipa_from_hpfar(va));
    if access.write {
        let value = registers.get(access.register);
        return gic::write(ipa, access.bytes, value);
    }
    let value = gic::read(ipa, access.bytes)?;
    registers.set(access.register, access.extend(value));
    Some(())
}
