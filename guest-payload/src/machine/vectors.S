// Exception vectors, and the frame that a handler sees (`Frame` in exceptions.rs has the same layout).

    .macro  vector kind
    .balign 128
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x1, #\kind
    b       enter_handler
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global exception_vectors
exception_vectors:
    // From EL1 on SP_EL0: everything that tests do.
    vector  0
    vector  1
    vector  2
    vector  3
    // From EL1 on SP_EL1: a handler went wrong.
    vector  4
    vector  5
    vector  6
    vector  7
    // From EL0, AArch64.
    vector  8
    vector  9
    vector  10
    vector  11
    // From EL0, AArch32: never entered.
    vector  12
    vector  13
    vector  14
    vector  15

enter_handler:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, SP_EL0
    stp     x30, x2, [sp, #240]
    mrs     x2, ELR_EL1
    mrs     x3, SPSR_EL1
    stp     x2, x3, [sp, #256]
    mrs     x2, ESR_EL1
    mrs     x3, FAR_EL1
    stp     x2, x3, [sp, #272]
    mov     x0, sp
    bl      handle_exception
    ldp     x2, x3, [sp, #256]
    msr     ELR_EL1, x2
    msr     SPSR_EL1, x3
    ldp     x30, x2, [sp, #240]
    msr     SP_EL0, x2
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #288
    eret

// Calls a function that an exception may end.
//
// x0: the function; x1, x2: its arguments; x3: where to note the stack pointer that `catch_return` needs.
// Returns what the function returns; after an exception, whatever the handler put into x0.
    .global catch_call
catch_call:
    stp     x29, x30, [sp, #-112]!
    mov     x29, sp
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x4, DAIF
    str     x4, [sp, #96]
    mov     x4, sp
    str     x4, [x3]
    mov     x9, x0
    mov     x0, x1
    mov     x1, x2
    blr     x9
// Where the handler goes on after an exception, with SP_EL0 as noted above and interrupts masked.
    .global catch_return
catch_return:
    ldr     x4, [sp, #96]
    msr     DAIF, x4
    ldp     x27, x28, [sp, #80]
    ldp     x25, x26, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #112
    ret
