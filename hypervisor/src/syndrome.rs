//! Exception syndromes in words, for crash reports (Arm ARM D24.2.40).

/// What ESR_EL2 says of a synchronous exception.
pub const fn describe(esr: u64) -> &'static str {
    const CLASS_SHIFT: u32 = 26;
    match esr >> CLASS_SHIFT & 0x3f {
        0x00 => "an instruction that is undefined",
        0x0e => "illegal execution state",
        0x15..=0x17 => "a call to a higher exception level",
        0x18 => "a system register access that traps",
        0x20 | 0x21 => fault(esr, true),
        0x22 => "a program counter that is not aligned",
        0x24 | 0x25 => fault(esr, false),
        0x26 => "a stack pointer that is not aligned",
        0x2f => "SError",
        0x30..=0x35 => "a breakpoint, watchpoint or step",
        0x3c => "a BRK instruction",
        _ => "an exception of an unexpected class",
    }
}

/// The fault status code of an abort.
const fn fault(esr: u64, instruction: bool) -> &'static str {
    match (esr & 0x3f, instruction) {
        (0x00..=0x03, _) => "an address that is too large",
        (0x04..=0x07, true) => "instruction abort: code where nothing is mapped",
        (0x04..=0x07, false) => "data abort: an access where nothing is mapped",
        (0x08..=0x0b, _) => "an access flag fault",
        (0x0c..=0x0f, true) => "instruction abort: code in memory that may not be executed",
        (0x0c..=0x0f, false) => "data abort: an access that the hypervisor's own map forbids",
        (0x10..=0x17, _) => "an external abort",
        (0x21, _) => "an access that is not aligned",
        (0x30, _) => "a TLB conflict abort",
        _ => "an abort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aborts_are_told_apart() {
        assert_eq!(describe(0x25 << 26 | 0x07), "data abort: an access where nothing is mapped");
        assert_eq!(describe(0x25 << 26 | 1 << 6 | 0x0f), "data abort: an access that the hypervisor's own map forbids");
        assert_eq!(describe(0x21 << 26 | 0x0f), "instruction abort: code in memory that may not be executed");
        assert_eq!(describe(0x25 << 26 | 0x10), "an external abort");
        assert_eq!(describe(0x3f << 26), "an exception of an unexpected class");
    }
}
