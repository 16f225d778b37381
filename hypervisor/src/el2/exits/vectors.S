// The EL2 exception vectors.
//
// From the guest: what a procedure call may change is saved (x0-x18, x30), one function is called, found in one table by
// exception class, and the guest goes on. The rest of the registers is saved only where that function asks for it.
// From EL2 itself: a synchronous exception of an instruction that has a fix-up goes on there; all else is a crash. No SError
// is taken at EL2: HCR_EL2.AMO and TGE are 0, so that SErrors are for EL1 (or EL3), and one for a lower exception level than the
// current one stays pending, whatever PSTATE.A is. What an access by EL2 for the guest causes is the guest's after the ERET.

// Saves what the callee may change. Layout: x0 to x18, x30, then room for x19 to x29, 16 bytes each pair.
.macro save_caller_saved
    stp     x0, x1, [sp, #-{frame_bytes}]!
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
.endm

.macro restore_caller_saved
    ldp     x18, x30, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #{frame_bytes}
.endm

// Calls the exception class's function in a table, with the frame and the syndrome; x0 is then 0, or what to call with all
// registers. ADR reaches 1 MiB: that is why .exits lies where the linker script has it.
.macro call_handler handlers
    mrs     x1, esr_el2
    adr     x2, \handlers
    lsr     w3, w1, #26
    ldr     x2, [x2, x3, lsl #3]
    mov     x0, sp
    blr     x2
.endm

// Calls x0 with all of the guest's registers in the frame. The first function has preserved x19 to x29.
.macro call_with_all_registers
    stp     x19, x20, [sp, #160]
    stp     x21, x22, [sp, #176]
    stp     x23, x24, [sp, #192]
    stp     x25, x26, [sp, #208]
    stp     x27, x28, [sp, #224]
    str     x29, [sp, #240]
    mov     x1, x0
    mov     x0, sp
    // A backtrace ends here: above is the guest.
    mov     x29, xzr
    blr     x1
    ldp     x19, x20, [sp, #160]
    ldp     x21, x22, [sp, #176]
    ldp     x23, x24, [sp, #192]
    ldp     x25, x26, [sp, #208]
    ldp     x27, x28, [sp, #224]
    ldr     x29, [sp, #240]
.endm

// The barriers are never executed: they stop speculation past the ERET.
.macro return_to_guest
    eret
    dsb     nsh
    isb
.endm

// An exception from EL2. SP_EL0 keeps x0 until there is a stack: the guest is lost, or a fix-up puts its SP_EL0 back. The
// emergency stack is used since the exception may be the overflow of the normal one.
.macro from_el2 kind, next
    .balign 128
    msr     sp_el0, x0
    mrs     x0, tpidr_el2
    add     x0, x0, {emergency_top}
    sub     x0, x0, {crash_bytes}
    stp     x1, x2, [x0, #8]
    mov     w1, #\kind
    b       \next
.endm

.macro crash kind
    from_el2 \kind, crash_common
.endm

// A vector table whose handlers are those of one table.
.macro vector_table name, handlers
    .balign 2048
    .global \name
\name:
    crash   0
    crash   1
    crash   2
    crash   3
    from_el2 4, fix_up_or_crash
    crash   5
    crash   6
    crash   7
    // AArch64 guest.
    .balign 128
    save_caller_saved
    call_handler \handlers
    cbnz    x0, exit_with_all_registers
    restore_caller_saved
    return_to_guest
    crash   9
    crash   10
    crash   11
    // AArch32 programs of the guest.
    .balign 128
    b       \name + 0x400
    crash   13
    crash   14
    crash   15
.endm

    .section .exits, "ax"
    vector_table vectors, {handlers}
    // For CPUs with FEAT_LSE: the frequent handlers, compiled for it.
    vector_table lse_vectors, {lse_handlers}

exit_with_all_registers:
    call_with_all_registers
    restore_caller_saved
    return_to_guest

// The same vectors, with the time at EL2 added up: for `icount=on`.
    .balign 2048
    .global timed_vectors
timed_vectors:
    crash   0
    crash   1
    crash   2
    crash   3
    from_el2 4, fix_up_or_crash
    crash   5
    crash   6
    crash   7
    .balign 128
    b       timed_exit
    crash   9
    crash   10
    crash   11
    .balign 128
    b       timed_exit
    crash   13
    crash   14
    crash   15

timed_exit:
    save_caller_saved
    mrs     x2, tpidr_el2
    mrs     x3, cntpct_el0
    str     x3, [x2, {entered_at}]
    call_handler {handlers}
    cbz     x0, 1f
    call_with_all_registers
1:
    mrs     x0, tpidr_el2
    mrs     x1, cntpct_el0
    ldr     x2, [x0, {entered_at}]
    ldr     x3, [x0, {el2_ticks}]
    sub     x1, x1, x2
    add     x3, x3, x1
    str     x3, [x0, {el2_ticks}]
    restore_caller_saved
    return_to_guest

// As crash_common, where the interrupted instruction may have an entry in the exception table: then EL2 goes on at its fix-up
// with all of its registers, but for SP_EL0, ELR_EL2, SPSR_EL2, ESR_EL2 and FAR_EL2. Entries: two 32-bit offsets, each from its
// own address: of the instruction, and of the fix-up.
fix_up_or_crash:
    stp     x3, x4, [x0, #24]
    mrs     x1, elr_el2
    adrp    x2, __exception_table_start
    add     x2, x2, :lo12:__exception_table_start
    adrp    x3, __exception_table_end
    add     x3, x3, :lo12:__exception_table_end
1:
    cmp     x2, x3
    b.hs    2f
    ldrsw   x4, [x2]
    add     x4, x4, x2
    add     x2, x2, #8
    cmp     x4, x1
    b.ne    1b
    ldrsw   x4, [x2, #-4]!
    add     x4, x4, x2
    msr     elr_el2, x4
    ldp     x1, x2, [x0, #8]
    ldp     x3, x4, [x0, #24]
    mrs     x0, sp_el0
    // SPSR_EL2 has the interrupted PSTATE: back to EL2, flags and all.
    eret
    dsb     nsh
    isb
2:
    ldp     x3, x4, [x0, #24]
    mov     w1, #4
    b       crash_common

// x0: the crash frame, x1 and x2 saved in it; w1: which vector.
crash_common:
    stp     x3, x4, [x0, #24]
    stp     x5, x6, [x0, #40]
    stp     x7, x8, [x0, #56]
    stp     x9, x10, [x0, #72]
    stp     x11, x12, [x0, #88]
    stp     x13, x14, [x0, #104]
    stp     x15, x16, [x0, #120]
    stp     x17, x18, [x0, #136]
    stp     x19, x20, [x0, #152]
    stp     x21, x22, [x0, #168]
    stp     x23, x24, [x0, #184]
    stp     x25, x26, [x0, #200]
    stp     x27, x28, [x0, #216]
    stp     x29, x30, [x0, #232]
    mrs     x2, sp_el0
    str     x2, [x0]
    mov     x2, sp
    mrs     x3, elr_el2
    stp     x2, x3, [x0, #248]
    mrs     x2, spsr_el2
    mrs     x3, esr_el2
    stp     x2, x3, [x0, #264]
    mrs     x2, far_el2
    str     x2, [x0, #280]
    mov     sp, x0
    bl      {crash}
    // Never reached.
    b       .

// enter_guest(context, entry, spsr, stack_top): the CPU's first entry, with all other registers 0.
    .global enter_guest
enter_guest:
    mov     sp, x3
    msr     elr_el2, x1
    msr     spsr_el2, x2
    .irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    // All controls of EL1 are in force before the guest's first instruction; the ERET itself synchronises.
    return_to_guest
