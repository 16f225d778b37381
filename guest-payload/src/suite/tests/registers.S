// One access to a system register each, for registers that EL1 has none of: x1 is written. The names are given by
// encoding, because an assembler for EL1 code may not know them.

    .macro  register name, encoding
    .global read_\name
read_\name:
    mrs     x0, \encoding
    ret
    .global write_\name
write_\name:
    msr     \encoding, x1
    ret
    .endm

    .section .text.registers, "ax"
    register HCR_EL2, S3_4_C1_C1_0
    register VTTBR_EL2, S3_4_C2_C1_0
    register VTCR_EL2, S3_4_C2_C1_2
    register SCTLR_EL2, S3_4_C1_C0_0
    register TTBR0_EL2, S3_4_C2_C0_0
    register VBAR_EL2, S3_4_C12_C0_0
    register ELR_EL2, S3_4_C4_C0_1
    register ESR_EL2, S3_4_C5_C2_0
    register HPFAR_EL2, S3_4_C6_C0_4
    register TPIDR_EL2, S3_4_C13_C0_2
    register CPTR_EL2, S3_4_C1_C1_2
    register MDCR_EL2, S3_4_C1_C1_1
    register CNTHCTL_EL2, S3_4_C14_C1_0
    register CNTVOFF_EL2, S3_4_C14_C0_3
    register CNTHP_CTL_EL2, S3_4_C14_C2_1
    register ICH_HCR_EL2, S3_4_C12_C11_0
    register VPIDR_EL2, S3_4_C0_C0_0
    register VMPIDR_EL2, S3_4_C0_C0_5
    register SCR_EL3, S3_6_C1_C1_0
    register VBAR_EL3, S3_6_C12_C0_0
    // Implementation defined space, and encodings that nothing has.
    register implementation_defined_1, S3_0_C15_C3_7
    register implementation_defined_2, S3_3_C15_C7_5
    register implementation_defined_3, S3_1_C11_C0_7
    register unallocated_1, S3_0_C8_C8_7
    register unallocated_2, S3_3_C7_C11_6
    register unallocated_3, S2_2_C3_C3_3

    .macro  instruction name, text:vararg
    .global execute_\name
execute_\name:
    \text
    ret
    .endm

    instruction tlbi_el2, tlbi alle2
    instruction tlbi_stage_2, tlbi ipas2e1is, x1
    instruction tlbi_all_el1, tlbi alle1is
    instruction tlbi_vmalls12e1, tlbi vmalls12e1is
    instruction at_el2, at s1e2r, x1
    instruction at_stage_1_and_2, at s12e1r, x1
    instruction unallocated, .inst 0x00000001
    instruction unallocated_system, sys #7, c14, c5, #3, x1
