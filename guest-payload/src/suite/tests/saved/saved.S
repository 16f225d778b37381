// Registers that hold while the guest is saved. Each function fills them, sets the word at x0 to 1, waits until another CPU
// writes 2 there, and returns how many are not as they were.

    .section .text.saved, "ax"
    .arch   armv8.2-a+sve+sme

    .macro  saved_held
    mov     x16, #1
    str     x16, [x0]
1:  ldar    x16, [x0]
    cmp     x16, #2
    b.ne    1b
    .endm

// x1 to x15, x17, x19 to x30: each holds its number.
    .global saved_general
saved_general:
    stp     x19, x20, [sp, #-96]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,17,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, #(0x1000 + \n)
    .endr
    saved_held
    mov     x0, xzr
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,17,19,20,21,22,23,24,25,26,27,28,29,30
    sub     x\n, x\n, #0x1, lsl #12
    cmp     x\n, #\n
    cinc    x0, x0, ne
    .endr
    ldp     x29, x30, [sp, #80]
    ldp     x27, x28, [sp, #64]
    ldp     x25, x26, [sp, #48]
    ldp     x23, x24, [sp, #32]
    ldp     x21, x22, [sp, #16]
    ldp     x19, x20, [sp], #96
    ret

    .macro  saved_vectors
    mov     x17, #(3 << 20 | 3 << 16)
    msr     CPACR_EL1, x17
    isb
    .endm

// V0 to V31: both halves of each hold its number.
    .global saved_simd
saved_simd:
    saved_vectors
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x16, #(0x1000 + \n)
    dup     v\n\().2d, x16
    .endr
    saved_held
    mov     x0, xzr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x16, #(0x1000 + \n)
    umov    x17, v\n\().d[0]
    cmp     x16, x17
    cinc    x0, x0, ne
    umov    x17, v\n\().d[1]
    cmp     x16, x17
    cinc    x0, x0, ne
    .endr
    msr     CPACR_EL1, xzr
    isb
    ret

// Z0 to Z31: their elements count up from their number; P0 to P15 and FFR: so many elements.
    .global saved_sve
saved_sve:
    saved_vectors
    // ZCR_EL1.LEN: the longest vectors.
    mov     x17, #0xf
    msr     S3_0_C1_C2_0, x17
    isb
    setffr
    ptrue   p0.b
    mov     x17, #5
    whilelo p1.b, xzr, x17
    wrffr   p1.b
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    mov     x17, #(\n + 3)
    whilelo p\n\().b, xzr, x17
    .endr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x17, #(0x1000 + \n)
    index   z\n\().d, x17, #1
    .endr
    saved_held
    mov     x0, xzr
    // Predicates first: each has its own number of elements.
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    cntp    x17, p\n, p\n\().b
    cmp     x17, #(\n + 3)
    cinc    x0, x0, ne
    .endr
    rdffr   p1.b
    cntp    x17, p1, p1.b
    cmp     x17, #5
    cinc    x0, x0, ne
    ptrue   p0.d
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    sub     z\n\().d, z\n\().d, z0.d
    .endr
    // The difference to Z0 is the number, in each element.
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x17, #\n
    dup     z0.d, x17
    cmpne   p1.d, p0/z, z\n\().d, z0.d
    cntp    x17, p0, p1.d
    cmp     x17, #0
    cinc    x0, x0, ne
    .endr
    msr     CPACR_EL1, xzr
    isb
    ret

// ZA: the elements of row n count up from n; in streaming mode Z1 to Z31: their elements count up from their number.
    .global saved_za
saved_za:
    // CPACR_EL1: FPEN, ZEN, SMEN. SMCR_EL1.LEN: the longest vectors.
    mov     x17, #(3 << 24 | 3 << 20 | 3 << 16)
    msr     CPACR_EL1, x17
    mov     x17, #0xf
    msr     S3_0_C1_C2_6, x17
    isb
    smstart
    ptrue   p0.b
    rdsvl   x15, #1
    mov     x12, xzr
1:  index   z0.b, w12, #1
    mov     za0h.b[w12, 0], p0/m, z0.b
    add     x12, x12, #1
    cmp     x12, x15
    b.ne    1b
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x17, #(0x1000 + \n)
    index   z\n\().d, x17, #1
    .endr
    saved_held
    mov     x0, xzr
    ptrue   p0.b
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x17, #(0x1000 + \n)
    index   z0.d, x17, #1
    cmpne   p1.b, p0/z, z\n\().b, z0.b
    cntp    x17, p0, p1.b
    cmp     x17, #0
    cinc    x0, x0, ne
    .endr
    mov     x12, xzr
1:  index   z0.b, w12, #1
    mov     z1.b, p0/m, za0h.b[w12, 0]
    cmpne   p1.b, p0/z, z1.b, z0.b
    cntp    x17, p0, p1.b
    cmp     x17, #0
    cinc    x0, x0, ne
    add     x12, x12, #1
    cmp     x12, x15
    b.ne    1b
    smstop
    msr     CPACR_EL1, xzr
    isb
    ret

// Steps through a loop of four instructions: x1 counts its turns, and x9 the exceptions of software step. Returns how many of
// these are too many or too few.
    .global saved_stepping
saved_stepping:
    mrs     x2, DAIF
    msr     DAIFSet, #0xf
    mrs     x3, OSLSR_EL1
    msr     OSLAR_EL1, xzr
    mrs     x4, VBAR_EL1
    mrs     x5, MDSCR_EL1
    adrp    x6, stepping_vectors
    add     x6, x6, :lo12:stepping_vectors
    msr     VBAR_EL1, x6
    // MDSCR_EL1: KDE, SS.
    orr     x6, x5, #(1 << 13)
    orr     x6, x6, #1
    msr     MDSCR_EL1, x6
    mov     x1, xzr
    mov     x9, xzr
    mov     x13, xzr
    adr     x6, 1f
    msr     ELR_EL1, x6
    // SPSR_EL1: SS; A, I and F masked, debug exceptions not; EL1 on SP_EL0.
    mov     x6, #0x1c4
    movk    x6, #0x20, lsl #16
    msr     SPSR_EL1, x6
    mov     x16, #1
    str     x16, [x0]
    // The vectors hold before the first step.
    isb
    eret
1:  add     x1, x1, #1
    ldar    x16, [x0]
    cmp     x16, #2
    b.ne    1b
    mov     x7, x9
    mov     x13, #1
    msr     MDSCR_EL1, x5
    msr     VBAR_EL1, x4
    lsr     x3, x3, #1
    msr     OSLAR_EL1, x3
    // All that was changed is as it was before anything is unmasked.
    isb
    msr     DAIF, x2
    sub     x0, x7, x1, lsl #2
    ret

    .balign 2048
stepping_vectors:
    // A synchronous exception from EL1 on SP_EL0. ESR_EL1.EC: software step, at the same level.
    mrs     x11, ESR_EL1
    lsr     x11, x11, #26
    cmp     x11, #0x33
    cinc    x9, x9, eq
    mrs     x11, SPSR_EL1
    // Another step, or none once the loop is over; debug exceptions are masked then.
    orr     x11, x11, #(1 << 21)
    cbz     x13, 1f
    bic     x11, x11, #(1 << 21)
    orr     x11, x11, #(1 << 9)
1:  msr     SPSR_EL1, x11
    eret
    .balign 2048
