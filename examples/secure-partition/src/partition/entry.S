// A context's first instructions: x0 is its stack, x1 the partition's number, x2 the CPU's. Stage 1 is off; the SPM makes
// the memory Normal all the same.

.section .text.entry, "ax"
.global _start
_start:
    mov     sp, x0
    adr     x3, vectors
    msr     vbar_el1, x3
    isb
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x1
    mov     x1, x2
    bl      main
    b       .

// probe_read(x0: address) -> 1 if it faulted; probe_write(x0: address) likewise; probe_execute(x0: address) likewise.
// What faults in them is skipped, with x1 set.
.global probe_read
.global probe_write
.global probe_execute
probe_read:
    mov     x1, #0
probe_first:
    ldr     x2, [x0]
    mov     x0, x1
    ret
probe_write:
    mov     x1, #0
    str     xzr, [x0]
    mov     x0, x1
probe_last:
    ret
// The fault comes at the target: the handler returns to where the call came from.
probe_execute:
    stp     x29, x30, [sp, #-16]!
    mov     x1, #0
    adr     x3, probe_back
    blr     x0
probe_back:
    ldp     x29, x30, [sp], #16
    mov     x0, x1
    ret

.macro unexpected why
    .balign 128
    mov     x0, #\why
    mrs     x1, esr_el1
    mrs     x2, far_el1
    mrs     x3, elr_el1
    bl      unexpected_exception
    b       .
.endm

.balign 2048
vectors:
    unexpected 0
    unexpected 1
    unexpected 2
    unexpected 3
    .balign 128
    // Synchronous, current level, SP_EL1: a probe's, or unexpected.
    stp     x4, x5, [sp, #-16]!
    mrs     x4, elr_el1
    adr     x5, probe_first
    cmp     x4, x5
    b.lo    1f
    adr     x5, probe_last
    cmp     x4, x5
    b.lo    2f
1:  // A fetch: x3 says where to go on, if it came from probe_execute.
    adr     x5, probe_back
    cmp     x3, x5
    b.ne    3f
    cmp     x4, x0
    b.ne    3f
    msr     elr_el1, x5
    b       4f
2:  add     x4, x4, #4
    msr     elr_el1, x4
4:  mov     x1, #1
    ldp     x4, x5, [sp], #16
    eret
3:  b       5f
    unexpected 5
    unexpected 6
    unexpected 7
    unexpected 8
    unexpected 9
    unexpected 10
    unexpected 11
    unexpected 12
    unexpected 13
    unexpected 14
    unexpected 15
5:  unexpected 4
