//! Stage-2 aborts: the engine first, then the registers that EL2 guards, and what is left the guest hears of.

use crate::el2::base::registers::{read_register, write_register};
use crate::el2::base::{cpu, firmware};
use crate::el2::exits::frame::{Frame, Next, Registers, skip_instruction};
use crate::el2::exits::inject;
use crate::el2::guest_memory::{self, gic, watch};
use hypervisor::exit_counts::Exit;
use hypervisor::injection::Exception;
use hypervisor::mmio::Access;
use stage2::{Abort, Ipa, Outcome, Syndrome};

const DATA_ABORT: u64 = 0x24;

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
    // A plain store that a leaf's permission refused is what tracking and protecting memory make of every first write:
    // it is told by one comparison. All else, and what this cannot settle, takes the way below.
    const FSC_KIND: u64 = 0x3c;
    const PERMISSION: u64 = 0x0c;
    const WNR: u64 = 1 << 6;
    const S1PTW: u64 = 1 << 7;
    const CM: u64 = 1 << 8;
    if esr & (FSC_KIND | WNR | S1PTW | CM) == PERMISSION | WNR {
        let va = read_register!("far_el2");
        let Some(ipa) = stage2::aarch64::translate_stage1_read(va) else {
            cpu::this_cpu().exits.count(Exit::DataAbort);
            return Next::RESUME;
        };
        let page = ipa.align_down(stage2::PAGE_SIZE);
        if guest_memory::fault::first_write(page, va) {
            // Counted as the engine's first write: see `cpu::PerCpu::exits`.
            return Next::RESUME;
        }
        return data_in_block(page, va, esr);
    }
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

#[inline(never)]
fn handle(esr: u64) -> Next {
    match decode(esr) {
        Decoded::Abort(abort) => settle(&abort, guest_memory::fault::fault(&abort)),
        Decoded::Changed => Next::RESUME,
        Decoded::Foreign => Next::with_all_registers(unresolved),
    }
}

/// What follows from the engine's answer.
#[inline(always)]
fn settle(abort: &Abort, outcome: Outcome) -> Next {
    match outcome {
        Outcome::Retry => Next::RESUME,
        Outcome::Frozen => {
            guest_memory::table().inspect(|table| table.wait_for_thaw());
            Next::RESUME
        }
        Outcome::Denied if watch::lets_through(abort) => Next::RESUME,
        Outcome::Unmapped | Outcome::Denied | Outcome::Stuck => Next::with_all_registers(unresolved),
    }
}

/// Handles an abort that never happened, as if the registers said so; nothing if `esr` is no abort's. For tests: the
/// machines that they run on raise no TLB conflict aborts, and no stale entries.
pub fn inject(esr: u64, address: u64, ipa: Ipa) -> Option<()> {
    Syndrome::decode(esr)?;
    write_register!("far_el2", address);
    write_register!("hpfar_el2", ipa.0 >> 12 << 4);
    handle(esr).is_resume().then_some(())
}

/// What ESR_EL2, FAR_EL2 and HPFAR_EL2 say.
enum Decoded {
    /// An abort that the stage-2 tables have caused.
    Abort(Abort),
    /// The guest has changed its own tables since: it finds out by trying again.
    Changed,
    /// An abort that the tables have nothing to do with.
    Foreign,
}

#[inline(always)]
fn decode(esr: u64) -> Decoded {
    let Some(syndrome) = Syndrome::decode(esr) else { return Decoded::Foreign };
    let address = read_register!("far_el2");
    let ipa = if syndrome.needs_no_address() {
        // A TLB conflict abort: AT would meet the same conflict, and fail, for ever.
        Some(Ipa(0))
    } else if syndrome.hpfar_is_valid() {
        Some(Ipa(stage2::fault::ipa_from_hpfar(read_register!("hpfar_el2")).0 | address & 0xfff))
    } else {
        stage2::aarch64::translate_stage1_read(address)
    };
    ipa.map_or(Decoded::Changed, |ipa| Decoded::Abort(syndrome.at(ipa, address)))
}

/// An access that nothing is mapped for, or that is forbidden.
extern "C" fn unresolved(registers: &mut Registers) {
    firmware::park_if_stopped();
    let esr = read_register!("esr_el2");
    if let Decoded::Abort(abort) = decode(esr)
        && let Some(access) = Access::from_syndrome(esr)
        && gic::is_guarded(abort.ipa)
    {
        if access.write {
            gic::write(abort.ipa, access.bytes, registers.get(access.register));
        } else {
            let value = gic::read(abort.ipa, access.bytes);
            registers.set(access.register, access.extend(value));
        }
        return skip_instruction(esr);
    }
    let exception = if esr >> 26 == DATA_ABORT {
        Exception::DataAbort { write: esr & 1 << 6 != 0, maintenance: esr & 1 << 8 != 0 }
    } else {
        Exception::InstructionAbort
    };
    log::debug!(
        "guest: ESR_EL2 {esr:#x}, FAR_EL2 {:#x}, HPFAR_EL2 {:#x}, ELR_EL2 {:#x}: external abort",
        read_register!("far_el2"),
        read_register!("hpfar_el2"),
        read_register!("elr_el2")
    );
    inject::abort(exception, esr, read_register!("far_el2"));
}
