// Registers that hold while a program works. Each function loads them from x0, counts x2 down, and stores them to x1: between the two
// no instruction changes them, so what is stored is what was loaded.

    .section .text.held, "ax"
    .arch   armv8.3-a+sve

    .macro  held_wait
1:  subs    x2, x2, #1
    b.ne    1b
    .endm

// V0 to V31.
    .global held_simd
held_simd:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr     q\n, [x0, #(16 * \n)]
    .endr
    held_wait
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     q\n, [x1, #(16 * \n)]
    .endr
    ret

// Z0 to Z31, then P0 to P15, which follow as they are as long as the vectors.
    .global held_sve
held_sve:
    addvl   x3, x0, #31
    addvl   x3, x3, #1
    addvl   x4, x1, #31
    addvl   x4, x4, #1
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr     z\n, [x0, #\n, mul vl]
    .endr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    ldr     p\n, [x3, #\n, mul vl]
    .endr
    held_wait
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x1, #\n, mul vl]
    .endr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    str     p\n, [x4, #\n, mul vl]
    .endr
    ret

// The bytes that held_sve loads.
    .global held_sve_bytes
held_sve_bytes:
    rdvl    x0, #31
    addvl   x0, x0, #1
    addpl   x0, x0, #16
    ret

// The sum of 1/1 to 1/x0, as the bits of a double.
    .global held_float
held_float:
    fmov    d0, xzr
    fmov    d1, #1.0
1:  ucvtf   d2, x0
    fdiv    d2, d1, d2
    fadd    d0, d0, d2
    subs    x0, x0, #1
    b.ne    1b
    fmov    x0, d0
    ret

// x0 signed with x1 by each of the program's keys for instructions and data, one over the other.
    .global held_sign
held_sign:
    mov     x2, x0
    pacia   x0, x1
    mov     x3, x2
    pacib   x3, x1
    eor     x0, x0, x3, ror #8
    mov     x3, x2
    pacda   x3, x1
    eor     x0, x0, x3, ror #16
    pacdb   x2, x1
    eor     x0, x0, x2, ror #24
    ret
