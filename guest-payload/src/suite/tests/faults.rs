//! Faults that the machine raises too seldom, or never: told to the engine as if they had just come.

use crate::calls::services::{Log, MIB, Since, area, leaf, page, protect, read, required, split, status_of, write};
use crate::machine::memory::PAGE;
use crate::machine::mmu::{self, NORMAL_RW};
use crate::machine::report::Outcome;
use hypervisor_abi::{function, leaf as size, log, permissions, status};
use stage2::Event;

group!(
    "faults",
    [
        conflict_abort,
        conflict_for_ever,
        spurious_fault_escalates,
        spurious_fault_for_ever,
        another_page_begins_anew,
        hpfar_not_valid,
        no_translation_any_more,
        walk_of_stage_1,
        walk_of_level_minus_1,
        denied_and_unmapped,
        access_flag,
    ]
);

/// ESR_EL2 of aborts from EL1: data (EC 0x24, IL) and fetches (EC 0x20, IL), by fault status; level 3 where there is one.
const DATA: u64 = 0x9200_0000;
const FETCH: u64 = 0x8200_0000;
const CONFLICT: u64 = 0x30;
const PERMISSION: u64 = 0x0f;
const TRANSLATION: u64 = 0x07;
const ACCESS_FLAG: u64 = 0x0b;
const WRITE: u64 = 1 << 6;
const STAGE_1_WALK: u64 = 1 << 7;

/// Has an abort handled that has not happened.
fn inject(syndrome: u64, virtual_address: u64, ipa: u64) -> i64 {
    status_of(function::INJECT_ABORT, [syndrome, virtual_address, ipa])
}

fn conflict_abort() -> Outcome {
    required()?;
    let at = area(4 * MIB, 2 * MIB)?.start;
    write(at, 1);
    let since = Since::now([Event::FaultConflict, Event::TlbiVmallS12E1Local]);
    // FAR may be an address that AT can't translate.
    for address in [at, 0xffff_dead_0000] {
        check_eq!(inject(DATA | CONFLICT, address, 0), status::SUCCESS, "conflict");
    }
    check_eq!(inject(FETCH | CONFLICT, at, 0), status::SUCCESS, "conflict on a fetch");
    check_eq!(since.counts(), [3, 3], "conflicts, and TLBI VMALLS12E1 in answer");
    check_eq!(read(at), 1, "memory after it");
    Ok(())
}

fn conflict_for_ever() -> Outcome {
    required()?;
    let at = area(2 * MIB, 2 * MIB)?.start + 31 * PAGE;
    // The same one again and again can't be helped: the guest hears of it, and EL2 does not go on for ever.
    let answered = (0..200).take_while(|_| inject(DATA | CONFLICT, at, at) == status::SUCCESS).count();
    check!((16..200).contains(&answered), "{answered} conflicts in a row were answered by another try");
    // Another address is another matter.
    check_eq!(inject(DATA | CONFLICT, at + MIB, at), status::SUCCESS, "a conflict at another address");
    Ok(())
}

fn spurious_fault_escalates() -> Outcome {
    required()?;
    // Not a page that another test has had fault: the engine remembers the last one.
    let at = area(2 * MIB, 2 * MIB)?.start + 77 * PAGE;
    write(at, 2);
    let since = Since::now([
        Event::FaultSpurious,
        Event::EscalateVmallE1,
        Event::EscalateVmallS12E1,
        Event::TlbiIpaLocal,
        Event::TlbiVaLocal,
        Event::TlbiVmallE1Local,
        Event::TlbiVmallS12E1Local,
    ]);
    let steps = [[1, 0, 0, 1, 1, 0, 0], [2, 1, 0, 2, 1, 1, 0], [3, 1, 1, 2, 1, 1, 1], [4, 1, 2, 2, 1, 1, 2]];
    for step in steps {
        // A permission fault of a store to a page that is writable.
        check_eq!(inject(DATA | WRITE | PERMISSION, at, at), status::SUCCESS, "spurious fault");
        check_eq!(since.counts(), step, "spurious faults, escalations, and the invalidations of each step");
    }
    check_eq!(read(at), 2, "memory after it");
    Ok(())
}

fn spurious_fault_for_ever() -> Outcome {
    required()?;
    let at = area(2 * MIB, 2 * MIB)?.start + 78 * PAGE;
    write(at, 2);
    let answered = (0..200).take_while(|_| inject(DATA | WRITE | PERMISSION, at, at) == status::SUCCESS).count();
    check!((16..200).contains(&answered), "{answered} faults in a row were answered by another try");
    write(at, 3);
    check_eq!(read(at), 3, "the page after that");
    Ok(())
}

fn another_page_begins_anew() -> Outcome {
    required()?;
    let start = area(2 * MIB, 2 * MIB)?.start;
    let since = Since::now([Event::FaultSpurious, Event::EscalateVmallE1]);
    for number in 0..20 {
        let at = start + (90 + number % 2) * PAGE;
        check_eq!(inject(DATA | WRITE | PERMISSION, at, at), status::SUCCESS, "spurious fault {number}");
    }
    check_eq!(since.counts(), [20, 0], "spurious faults of two pages in turn, and escalations");
    Ok(())
}

/// The IPA that a test claims for a permission fault, for which HPFAR_EL2 need not be right.
const NONSENSE: u64 = 0x7_dead_b000;

fn hpfar_not_valid() -> Outcome {
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    let alias = mmu::alias(range.clone(), NORMAL_RW);
    let log = Log::must_start(&range, log::WRITE_PROTECT)?;
    let offset = 12 * PAGE;
    let since = Since::now([Event::FaultPermission, Event::FaultSpurious, Event::Split2M]);
    check_eq!(inject(DATA | WRITE | PERMISSION, alias + offset + 8, NONSENSE), status::SUCCESS, "a store that faults");
    check_eq!(since.counts(), [1, 0, 1], "permission faults, spurious ones, and splits");
    log.must_report(&[range.start + offset], "the page that FAR_EL2 names")?;
    // The next one, in a table of pages, goes the short way.
    check_eq!(inject(DATA | WRITE | PERMISSION, alias + 2 * offset, NONSENSE), status::SUCCESS, "another");
    log.must_report(&[range.start + 2 * offset], "the page that FAR_EL2 names the second time")?;
    check_eq!(log.stop(), status::SUCCESS, "stop");
    Ok(())
}

fn no_translation_any_more() -> Outcome {
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    let log = Log::must_start(&range, log::WRITE_PROTECT)?;
    let since = Since::now([Event::FaultPermission, Event::Split2M]);
    // The guest has unmapped it since: it tries again and finds out by itself.
    let nowhere = mmu::ALIAS + (5 << 40);
    check_eq!(inject(DATA | WRITE | PERMISSION, nowhere, range.start), status::SUCCESS, "a store that faults");
    check_eq!(since.counts(), [0, 0], "faults that reach the engine, and splits");
    log.must_report(&[], "a fault whose address translates no more")?;
    check_eq!(log.stop(), status::SUCCESS, "stop");
    Ok(())
}

fn walk_of_stage_1() -> Outcome {
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    let log = Log::must_start(&range, log::WRITE_PROTECT)?;
    let table = range.start + 44 * PAGE;
    // On a walk HPFAR_EL2 is right, FAR_EL2 is what was walked for, and WnR says nothing.
    check_eq!(
        inject(DATA | STAGE_1_WALK | 0x0d, 0xdead_0000, table + 8),
        status::SUCCESS,
        "a walk's update that faults"
    );
    log.must_report(&[table], "the table that the walk updates")?;
    check_eq!(log.stop(), status::SUCCESS, "stop");
    Ok(())
}

fn walk_of_level_minus_1() -> Outcome {
    required()?;
    const TRANSLATION: u64 = 0x2b;
    const ADDRESS_SIZE: u64 = 0x29;
    const EXTERNAL: u64 = 0x13;
    let table = area(2 * MIB, 2 * MIB)?.start + 45 * PAGE;
    for (number, kind) in (1..).zip([FETCH, DATA, DATA | WRITE]) {
        let at = table + number * PAGE;
        let since = Since::now([Event::FaultTranslation, Event::FaultSpurious]);
        check_eq!(inject(kind | STAGE_1_WALK | TRANSLATION, 0xdead_0000, at), status::SUCCESS, "an invalid window");
        check_eq!(since.counts(), [1, 1], "translation faults, and spurious ones");
        for fault in [ADDRESS_SIZE, EXTERNAL] {
            let status = inject(kind | STAGE_1_WALK | fault, 0xdead_0000, at);
            check_eq!(status, status::INVALID_PARAMETERS, "status {fault:#x}, which no table can mend");
        }
    }
    Ok(())
}

fn denied_and_unmapped() -> Outcome {
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    let at = range.start + 6 * PAGE;
    check_eq!(protect(&page(at), permissions::READ), status::SUCCESS, "deny");
    let refused = status::INVALID_PARAMETERS;
    for _ in 0..3 {
        check_eq!(inject(DATA | WRITE | PERMISSION, at, at), refused, "a store to a page that is denied");
        check_eq!(inject(FETCH | PERMISSION, at, at), refused, "a fetch from a page that is denied");
        check_eq!(inject(DATA | TRANSLATION, at, 0x7_0000_0000), refused, "a load where nothing is");
        check_eq!(inject(DATA | TRANSLATION, at, 0xf_ffff_ffff_f000), refused, "a load beyond all addresses");
    }
    check_eq!(leaf(at).map(|leaf| leaf.allowed), Some(permissions::READ), "what the page allows after that");
    Ok(())
}

fn access_flag() -> Outcome {
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    check_eq!(split(&range, size::PAGE), status::SUCCESS, "split");
    let at = range.start + 60 * PAGE;
    let since = Since::now([Event::FaultAccessFlag, Event::FaultSpurious]);
    // The engine sets every access flag itself, so such a fault is of an older entry.
    check_eq!(inject(DATA | ACCESS_FLAG, at, at), status::SUCCESS, "an access flag fault");
    check_eq!(since.counts(), [1, 1], "access flag faults, and spurious ones");
    Ok(())
}
