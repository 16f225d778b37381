// Features that are system registers above all, and the debug ones. The macros are those of features.S, behind which this
// is assembled.

    feature ras
    mrs     x0, S3_0_C5_C3_0        // ERRIDR_EL1
    mrs     x1, S3_0_C12_C1_1       // DISR_EL1
    msr     S3_0_C12_C1_1, xzr
    esb
    ret

    feature amu
    mrs     x0, S3_3_C13_C2_1       // AMCFGR_EL0
    mrs     x1, S3_3_C13_C2_2       // AMCGCR_EL0
    mrs     x2, S3_3_C13_C4_0       // AMEVCNTR00_EL0
    ret

    feature trace_filter
    mrs     x1, S3_0_C1_C2_1        // TRFCR_EL1
    msr     S3_0_C1_C2_1, x1
    ret
    feature statistical_profiling
    mrs     x0, S3_0_C9_C9_7        // PMSIDR_EL1
    mrs     x1, S3_0_C9_C9_0        // PMSCR_EL1
    msr     S3_0_C9_C9_0, x1
    mrs     x1, S3_0_C9_C10_0       // PMBLIMITR_EL1
    msr     S3_0_C9_C10_0, x1
    ret
    feature trace_buffer
    mrs     x0, S3_0_C9_C11_7       // TRBIDR_EL1
    mrs     x1, S3_0_C9_C11_0       // TRBLIMITR_EL1
    msr     S3_0_C9_C11_0, x1
    ret
    feature branch_records
    mrs     x0, S2_1_C9_C2_0        // BRBIDR0_EL1
    mrs     x1, S2_1_C9_C0_0        // BRBCR_EL1
    msr     S2_1_C9_C0_0, x1
    ret
    feature trace_unit
    mrs     x0, S2_1_C0_C8_7        // TRCIDR0
    ret
    feature mpam
    mrs     x0, S3_0_C10_C4_4       // MPAMIDR_EL1
    mrs     x1, S3_0_C10_C5_0       // MPAM1_EL1
    msr     S3_0_C10_C5_0, x1
    mrs     x1, S3_0_C10_C5_1       // MPAM0_EL1
    msr     S3_0_C10_C5_1, x1
    ret
    feature limited_ordering
    mrs     x0, S3_0_C10_C4_7       // LORID_EL1
    mrs     x1, S3_0_C10_C4_3       // LORC_EL1
    msr     S3_0_C10_C4_3, x1
    ret
// SCXTNUM_EL0 and _EL1: what was written, both.
    feature context_numbers
    mov     x1, #0x55
    msr     S3_3_C13_C0_7, x1
    msr     S3_0_C13_C0_7, x1
    mrs     x0, S3_3_C13_C0_7
    mrs     x2, S3_0_C13_C0_7
    and     x0, x0, x2
    ret
    feature tcr2
    mrs     x1, S3_0_C2_C0_3        // TCR2_EL1
    msr     S3_0_C2_C0_3, x1
    isb
    ret
    feature sctlr2
    mrs     x1, S3_0_C1_C0_3        // SCTLR2_EL1
    msr     S3_0_C1_C0_3, x1
    isb
    ret
    feature permission_indirection
    mrs     x1, S3_0_C10_C2_3       // PIR_EL1
    msr     S3_0_C10_C2_3, x1
    mrs     x1, S3_0_C10_C2_2       // PIRE0_EL1
    msr     S3_0_C10_C2_2, x1
    ret
    feature permission_overlay
    mrs     x1, S3_0_C10_C2_4       // POR_EL1
    msr     S3_0_C10_C2_4, x1
    ret
// Sets 64 bytes at x0 to the byte in x1 with the memory set instructions; returns the first eight.
    feature memory_operations
    mov     x3, x0
    mov     x2, #64
    .inst   0x19c10443              // setp [x3]!, x2!, x1
    .inst   0x19c14443              // setm [x3]!, x2!, x1
    .inst   0x19c18443              // sete [x3]!, x2!, x1
    ldr     x0, [x0]
    ret
    feature nmi
    mrs     x0, S3_0_C4_C3_0        // ALLINT
    ret
    feature guarded_control_stack
    mrs     x1, S3_0_C2_C5_0        // GCSCR_EL1
    msr     S3_0_C2_C5_0, x1
    ret
// Loads 64 bytes at x0, which must be memory that supports it; any abort but an undefined instruction is fine.
    feature load_store_64
    ld64b   x2, [x0]
    mov     x0, #1
    ret

// Hardware breakpoint on the instruction behind the ISB.
    feature breakpoint
    msr     OSLAR_EL1, xzr
    adr     x1, 1f
    msr     DBGBVR0_EL1, x1
    mov     x1, #0x1e7              // E, PMC EL1 and EL0, all four bytes
    msr     DBGBCR0_EL1, x1
    mrs     x1, MDSCR_EL1
    mov     x2, #(1 << 15 | 1 << 13)    // MDE, KDE
    orr     x1, x1, x2
    msr     MDSCR_EL1, x1
    isb
1:  nop
    mov     x0, #0
    ret
// Hardware watchpoint on stores to the eight bytes at x0.
    feature watchpoint
    msr     OSLAR_EL1, xzr
    msr     DBGWVR0_EL1, x0
    mov     x1, #0x1ff7             // E, EL1 and EL0, stores, all eight bytes
    msr     DBGWCR0_EL1, x1
    mrs     x1, MDSCR_EL1
    mov     x2, #(1 << 15 | 1 << 13)
    orr     x1, x1, x2
    msr     MDSCR_EL1, x1
    isb
    str     xzr, [x0]
    mov     x0, #0
    ret
// Switches both off again.
    feature debug_off
    msr     DBGBCR0_EL1, xzr
    msr     DBGWCR0_EL1, xzr
    mrs     x1, MDSCR_EL1
    mov     x2, #(1 << 15 | 1 << 13)
    bic     x1, x1, x2
    msr     MDSCR_EL1, x1
    isb
    ret
// Writes x0 plus its number to every breakpoint value register that x1 (how many) promises is there.
    feature breakpoint_registers
    mov     x2, x1
    adr     x3, 1f
    mov     x4, #16
    sub     x4, x4, x2
    add     x3, x3, x4, lsl #3
    br      x3
1:  .irp    n, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
    msr     DBGBVR\n\()_EL1, x0
    mrs     x2, DBGBVR\n\()_EL1
    .endr
    mov     x0, x2
    ret

// Reads ID register S3_0_C0_C(x0 / 8)_(x0 % 8), x0 from 0 to 63.
    feature id_register
    adr     x1, 1f
    add     x1, x1, x0, lsl #3
    br      x1
1:  .irp    crm, 0, 1, 2, 3, 4, 5, 6, 7
    .irp    op2, 0, 1, 2, 3, 4, 5, 6, 7
    mrs     x0, S3_0_C0_C\crm\()_\op2
    ret
    .endr
    .endr
