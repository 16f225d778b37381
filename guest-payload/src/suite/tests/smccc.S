// Calls that check everything the convention promises (DEN0028, 2.6): x4 to x30 and SP are kept from SMCCC 1.1 on, and
// execution goes on right behind the call, once.
//
// x0 = function identifier, x1 = address of 34 words: [0..4] get x0 to x3; [4..31] get x4 to x30, of which x30 counts how often the
// instruction behind the call was executed; [32] SP before, [33] SP after.
    .macro  checked_call name, instruction
    .global smccc_\name
smccc_\name:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x18, [sp, #96]
    mov     x2, sp
    str     x2, [x1, #256]
    msr     TPIDR_EL0, x1
    mov     x1, #0x101
    mov     x2, #0x202
    mov     x3, #0x303
    .irp    n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, #(0x1000 + \n)
    .endr
    \instruction #0
    // Executed once: x30 was known, and counts.
    add     x30, x30, #1
    // x0 to x3 are saved last, since an address register is needed.
    str     x0, [sp, #-16]!
    mrs     x0, TPIDR_EL0
    str     x1, [x0, #8]
    str     x2, [x0, #16]
    str     x3, [x0, #24]
    ldr     x1, [sp], #16
    str     x1, [x0]
    .irp    n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    str     x\n, [x0, #8 * \n]
    .endr
    mov     x1, sp
    str     x1, [x0, #264]
    ldr     x18, [sp, #96]
    ldp     x27, x28, [sp, #80]
    ldp     x25, x26, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #112
    ret
    .endm

    .section .text.smccc, "ax"
    checked_call hvc, hvc
    checked_call smc, smc
