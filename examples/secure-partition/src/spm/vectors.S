// Into a partition's context and back.

// Offsets in Context (context.rs).
.equ ELR, 31 * 8
.equ SPSR, 32 * 8

.section .text.vectors, "ax"

// enter_context(x0: *mut Context) -> why: runs the context until something is taken to S-EL2, as if it were a function.
// What the function call convention has callees keep goes to the stack, and the context's address to TPIDR_EL2.
.global enter_context
enter_context:
    stp     x19, x20, [sp, #-96]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    msr     tpidr_el2, x0
    ldp     x1, x2, [x0, #ELR]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    // No instruction past an ERET is speculated on.
    dsb     nsh
    isb

.macro from_context why
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\why
    b       leave_context
.endm

.macro from_spm why
    .balign 128
    mov     x0, #\why
    b       own_exception
.endm

.balign 2048
.global vectors
vectors:
    from_spm 0
    from_spm 1
    from_spm 2
    from_spm 3
    from_spm 4
    from_spm 5
    from_spm 6
    from_spm 7
    from_context 0
    from_context 1
    from_context 2
    from_context 3
    from_spm 12
    from_spm 13
    from_spm 14
    from_spm 15

leave_context:
    mrs     x0, tpidr_el2
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #ELR]
    mov     x0, x1
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     x19, x20, [sp], #96
    ret
