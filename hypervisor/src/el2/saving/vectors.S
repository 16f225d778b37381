// Vector registers to memory and back, and the way into a guest that was saved.

// save_simd(to), load_simd(from): Q0 to Q31, 16 bytes each.
    .text
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .arch_extension sme
    .macro simd instruction
    \instruction q0, q1, [x0, #0]
    \instruction q2, q3, [x0, #32]
    \instruction q4, q5, [x0, #64]
    \instruction q6, q7, [x0, #96]
    \instruction q8, q9, [x0, #128]
    \instruction q10, q11, [x0, #160]
    \instruction q12, q13, [x0, #192]
    \instruction q14, q15, [x0, #224]
    \instruction q16, q17, [x0, #256]
    \instruction q18, q19, [x0, #288]
    \instruction q20, q21, [x0, #320]
    \instruction q22, q23, [x0, #352]
    \instruction q24, q25, [x0, #384]
    \instruction q26, q27, [x0, #416]
    \instruction q28, q29, [x0, #448]
    \instruction q30, q31, [x0, #480]
    .endm

    .global save_simd
save_simd:
    simd    stp
    ret

    .global load_simd
load_simd:
    simd    ldp
    ret

// save_sve(to, ffr), load_sve(from, ffr): Z0 to Z31, P0 to P15, and FFR where x1 is not 0, with the vector length that EL2 has.
    .macro each_z instruction
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \instruction z\n, [x0, #\n, mul vl]
    .endr
    .endm
    .macro each_p instruction
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \instruction p\n, [x0, #\n, mul vl]
    .endr
    .endm

    .global save_sve
save_sve:
    each_z  str
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    each_p  str
    cbz     x1, 1f
    rdffr   p0.b
    str     p0, [x0, #16, mul vl]
    // P0 is the guest's still.
    ldr     p0, [x0]
1:  ret

    .global load_sve
load_sve:
    mov     x2, x0
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    cbz     x1, 1f
    ldr     p0, [x0, #16, mul vl]
    wrffr   p0.b
1:  each_p  ldr
    mov     x0, x2
    each_z  ldr
    ret

// Bytes of a vector, and of a streaming one.
    .global vector_bytes
vector_bytes:
    rdvl    x0, #1
    ret

    .global streaming_vector_bytes
streaming_vector_bytes:
    rdsvl   x0, #1
    ret

// save_za(to), load_za(from): ZA row by row.
    .macro each_row instruction
    rdsvl   x1, #1
    mov     x2, x1
    mov     w12, wzr
1:  \instruction za[w12, 0], [x0]
    add     x0, x0, x1
    add     w12, w12, #1
    subs    x2, x2, #1
    b.ne    1b
    ret
    .endm

    .global save_za
save_za:
    each_row str

    .global load_za
load_za:
    each_row ldr

// resume_guest(general, stack_top): x0 to x30 as they were; ELR_EL2 and SPSR_EL2 are set.
    .global resume_guest
resume_guest:
    mov     sp, x1
    ldp     x1, x2, [x0, #8]
    ldp     x3, x4, [x0, #24]
    ldp     x5, x6, [x0, #40]
    ldp     x7, x8, [x0, #56]
    ldp     x9, x10, [x0, #72]
    ldp     x11, x12, [x0, #88]
    ldp     x13, x14, [x0, #104]
    ldp     x15, x16, [x0, #120]
    ldp     x17, x18, [x0, #136]
    ldp     x19, x20, [x0, #152]
    ldp     x21, x22, [x0, #168]
    ldp     x23, x24, [x0, #184]
    ldp     x25, x26, [x0, #200]
    ldp     x27, x28, [x0, #216]
    ldp     x29, x30, [x0, #232]
    ldr     x0, [x0]
    // All that was restored holds: the ERET synchronises.
    eret
    dsb     nsh
    isb
