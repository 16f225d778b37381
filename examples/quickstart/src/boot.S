// From reset at EL2 to Rust, and from there into the guest and back. QEMU's `virt` with virtualization=on starts its first
// CPU here, with the MMU off, when it is given an ELF; .bss is zero.

.equ SCTLR_ON, 0x30c50830 | (1 << 12) | (1 << 3) | (1 << 2) | (1 << 0)
    // RES1 bits; I, SA, C, M.
.equ MAIR, 0xff00
    // Attribute 0: Device-nGnRnE. Attribute 1: Normal, write-back.
.equ TCR, (1 << 31) | (1 << 23) | (2 << 16) | (3 << 12) | (1 << 10) | (1 << 8) | 25
    // RES1, 40-bit PA, walks inner shareable and write-back, 4 KiB granule, 39-bit VA: the walk starts at level 1.

.section .text.boot, "ax"
.global _start
_start:
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el2, x0
    adrp    x0, el2_map
    msr     ttbr0_el2, x0
    ldr     x0, =MAIR
    msr     mair_el2, x0
    ldr     x0, =TCR
    msr     tcr_el2, x0
    tlbi    alle2
    // Completes the invalidation before the MMU is on.
    dsb     nsh
    isb
    ldr     x0, =SCTLR_ON
    msr     sctlr_el2, x0
    isb
    adrp    x0, stack_top
    add     x0, x0, :lo12:stack_top
    mov     sp, x0
    b       main

// EL2's own map: GiB by GiB, each at its physical address. Table frames are mapped Normal, write-back, inner shareable, as
// the walks of stage 2 see them.
.section .rodata.map, "a"
.balign 4096
el2_map:
    .quad   0x00000000 | (1 << 54) | (1 << 10) | (1 << 6) | 1                       // Devices, never executed
    .quad   0x40000000 | (1 << 10) | (3 << 8) | (1 << 6) | (1 << 2) | 1             // This program
    .quad   0x80000000 | (1 << 54) | (1 << 10) | (3 << 8) | (1 << 6) | (1 << 2) | 1 // The guest's memory
    .fill   509, 8, 0

// run_guest(x0: *mut Vcpu): runs the guest until an exception is taken to EL2, as if it were a function. What the function
// call convention has callees keep goes to the stack, and the registers' address to TPIDR_EL2.
.text
.global run_guest
run_guest:
    stp     x19, x20, [sp, #-96]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    msr     tpidr_el2, x0
    ldp     x1, x2, [x0, #248]
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

.macro from_el2
    .balign 128
    b       exception_at_el2
.endm

.macro from_guest
    .balign 128
    stp     x0, x1, [sp, #-16]!
    b       guest_stopped
.endm

// Here an exception from EL2 ends the program. Where the guest has a stage 1 of its own, the one for synchronous exceptions
// looks ELR_EL2 up in .exception_table first: `aarch64::translate_stage1_read` says how.
.balign 2048
vectors:
    .rept 8
    from_el2
    .endr
    .rept 4
    from_guest
    .endr
    .rept 4
    from_el2
    .endr

guest_stopped:
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
    stp     x2, x3, [x0, #248]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     x19, x20, [sp], #96
    ret

// The guest, which is copied into its own memory: stores to the page in x0, says so after 1000 stores, goes on to 2000, and
// says so again.
.section .guest, "ax"
    mov     x1, #0
1:  add     x1, x1, #1
    str     x1, [x0]
    cmp     x1, #1000
    b.ne    2f
    hvc     #1
2:  cmp     x1, #2000
    b.ne    1b
    hvc     #2
