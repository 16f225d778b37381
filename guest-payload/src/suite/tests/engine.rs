//! The calls themselves: what is no range, no size or no page of the guest's is refused.

use crate::calls::hypercall;
use crate::calls::services::{MIB, area, hvc, required};
use crate::machine::memory;
use crate::machine::report::Outcome;
use hypervisor_abi::{function, log, status, watch};

group!("engine", [bad_arguments, unknown_calls, own_memory_is_no_buffer]);

const PAGE: u64 = memory::PAGE;

fn status_of(answer: [u64; 4]) -> i64 {
    answer[0] as i64
}

fn bad_arguments() -> Outcome {
    required()?;
    let at = area(4 * MIB, 2 * MIB)?.start;
    let own = hvc(function::OWN_MEMORY, [0; 3])[1];
    let bad = status::INVALID_PARAMETERS;
    for (start, bytes) in [(at + 1, PAGE), (at, 0), (at, 100), (!0xfff, 2 * PAGE), (1 << 50, PAGE)] {
        for function in [function::PROTECT, function::SPLIT, function::COLLAPSE, function::LOG_START, function::WATCH] {
            check_eq!(status_of(hvc(function, [start, bytes, 0])), bad, "{function:#x} of {start:#x}, {bytes:#x}");
        }
    }
    check_eq!(status_of(hvc(function::PROTECT, [own, PAGE, 7])), bad, "the hypervisor's own memory");
    check_eq!(status_of(hvc(function::PROTECT, [at, PAGE, 8])), bad, "unknown permissions");
    check_eq!(status_of(hvc(function::SPLIT, [at, PAGE, 5])), bad, "an unknown size");
    check_eq!(status_of(hvc(function::LOG_START, [at, PAGE, 77])), bad, "an unknown mechanism");
    check_eq!(status_of(hvc(function::WATCH, [at, PAGE, 3])), bad, "an unknown policy");
    check_eq!(status_of(hvc(function::WATCH, [own, PAGE, watch::DENY])), bad, "watching the hypervisor's memory");
    check_eq!(status_of(hvc(function::LEAF, [own, 0, 0])), status::NOT_FOUND, "the leaf of the hypervisor's memory");
    check_eq!(status_of(hvc(function::LEAF, [1 << 50, 0, 0])), status::NOT_FOUND, "the leaf of no address");
    check_eq!(status_of(hvc(function::COUNTER, [9999, 0, 0])), bad, "an unknown counter");
    check_eq!(status_of(hvc(function::INJECT_ABORT, [0x5600_0000, at, at])), bad, "a syndrome that is no abort's");
    let handle = hvc(function::LOG_START, [at, PAGE, log::WRITE_PROTECT])[1];
    for buffer in [own, at + 4, 0x0800_0000, u64::MAX - 7, 1 << 50] {
        check_eq!(status_of(hvc(function::LOG_HARVEST, [handle, buffer, 512])), bad, "a buffer at {buffer:#x}");
    }
    check_eq!(status_of(hvc(function::LOG_HARVEST, [handle, at + MIB, 0])), bad, "a buffer without room");
    check_eq!(status_of(hvc(function::LOG_START, [at, PAGE, 0])), status::BUSY, "a log of what is logged");
    check_eq!(status_of(hvc(function::LOG_STOP, [handle, 0, 0])), status::SUCCESS, "stop");
    check_eq!(status_of(hvc(function::LOG_STOP, [handle, 0, 0])), bad, "stop again");
    Ok(())
}

fn unknown_calls() -> Outcome {
    required()?;
    for number in [0xc600_0009_u32, 0xc600_000f, 0xc600_0013, 0xc600_0025, 0xc600_0033, 0xc600_ffff, 0x8600_0001] {
        check_eq!(status_of(hvc(number, [0; 3])), status::NOT_SUPPORTED, "the call {number:#x}");
    }
    Ok(())
}

fn own_memory_is_no_buffer() -> Outcome {
    required()?;
    let area = area(2 * MIB, 2 * MIB)?;
    let [x0, handle, ..] = hvc(function::LOG_START, [area.start, 2 * MIB, log::WRITE_PROTECT]);
    check_eq!(x0 as i64, status::SUCCESS, "start");
    for own in hypercall::own_memory() {
        // The last page before it may be the guest's: the words after it are not.
        for buffer in [own.start, own.start - 8, own.end - 8, own.start + (own.end - own.start) / 2] {
            for function in [function::LOG_HARVEST, function::LOG_PEEK, function::LOG_CLEAR] {
                let answer = status_of(hvc(function, [handle, buffer, 8]));
                check_eq!(answer, status::INVALID_PARAMETERS, "{function:#x} with a buffer at {buffer:#x}");
            }
        }
    }
    check_eq!(status_of(hvc(function::LOG_STOP, [handle, 0, 0])), status::SUCCESS, "stop");
    Ok(())
}
