// Entry of the payload: arm64 Image header, relocation, MMU on, into Rust.
//
// The state at entry is the kernel's boot protocol (Documentation/arch/arm64/booting.rst): x0 = device tree, MMU off,
// the Image cleaned to the point of coherency, everything else of memory in any state.

    .section .head, "ax"
    .global _head
_head:
    b       primary_entry
    .long   0
    .quad   0                       // text_offset
    .quad   _image_size
    .quad   0b1010                  // little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .section .text.boot, "ax"

// The boot CPU's entry.
primary_entry:
    // Nothing may be changed before it is noted down: the tests compare these with the boot protocol.
    mrs     x20, CurrentEL
    mrs     x21, DAIF
    mrs     x22, SCTLR_EL1
    mrs     x23, SPSel
    mov     x24, x0
    mov     x25, x1
    mov     x26, x2
    mov     x27, x3

    // The image is linked at 0, so its first byte's address is the displacement.
    adrp    x19, _head
    adrp    x10, _rela_start
    add     x10, x10, :lo12:_rela_start
    adrp    x11, _rela_end
    add     x11, x11, :lo12:_rela_end
1:  cmp     x10, x11
    b.hs    2f
    ldp     x12, x13, [x10], #16
    ldr     x14, [x10], #8
    cmp     w13, #1027              // R_AARCH64_RELATIVE
    b.ne    .                       // The link is wrong; nothing can be said yet.
    add     x14, x14, x19
    str     x14, [x12, x19]
    b       1b

2:  adrp    x10, _bss_start
    adrp    x11, _bss_end
3:  cmp     x10, x11
    b.hs    4f
    stp     xzr, xzr, [x10], #16
    b       3b

4:  adrp    x10, BOOT_STATE
    add     x10, x10, :lo12:BOOT_STATE
    stp     x24, x25, [x10]
    stp     x26, x27, [x10, #16]
    stp     x20, x21, [x10, #32]
    stp     x22, x23, [x10, #48]

    msr     SPSel, #1
    adrp    x11, PRIMARY_EXCEPTION_STACK
    add     x11, x11, :lo12:PRIMARY_EXCEPTION_STACK
    add     x11, x11, #16384
    mov     sp, x11
    mov     x0, x24
    bl      early_tables
    mov     x28, x0

    // All stores so far went past the caches. A cache may still hold clean copies of the lines from before; drop them, or
    // they would be read once the caches are on. (The protocol rules out dirty ones over the Image; over the BSS a
    // dirty line is stale by now.)
    mrs     x9, CTR_EL0
    ubfx    x9, x9, #16, #4         // DminLine, log2 of words
    mov     x10, #4
    lsl     x9, x10, x9
    mov     x10, x19
    adrp    x11, _image_end
    dsb     sy                      // The stores reach memory before the lines are dropped.
5:  dc      ivac, x10
    add     x10, x10, x9
    cmp     x10, x11
    b.lo    5b
    dsb     sy                      // The lines are gone before the MMU turns the caches on.
    ic      iallu                   // Relocated rodata is never fetched, but text shares no promise either way.
    dsb     nsh
    isb

    mov     x0, x28
    bl      enable_mmu
    adrp    x0, exception_vectors
    add     x0, x0, :lo12:exception_vectors
    msr     VBAR_EL1, x0
    isb
    // Tests run on SP_EL0; exceptions are taken on SP_EL1, so that no test can break the stack that reports it.
    msr     SPSel, #0
    adrp    x0, PRIMARY_STACK
    add     x0, x0, :lo12:PRIMARY_STACK
    add     x0, x0, #65536
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    bl      primary_main
    b       .

// A secondary CPU's entry, given to PSCI CPU_ON. x0: address of its `SecondaryBoot`, cleaned to the point of coherency.
    .global secondary_entry
secondary_entry:
    mrs     x20, CurrentEL
    mrs     x21, DAIF
    mrs     x22, SCTLR_EL1
    mov     x19, x0
    bl      enable_mmu              // `SecondaryBoot` starts with the `MmuRegisters`.
    ldp     x1, x2, [x19, #32]
    msr     SPSel, #1
    mov     sp, x2
    msr     SPSel, #0
    mov     sp, x1
    adrp    x0, exception_vectors
    add     x0, x0, :lo12:exception_vectors
    msr     VBAR_EL1, x0
    isb
    mov     x29, xzr
    mov     x30, xzr
    ldr     x0, [x19, #48]
    mov     x1, x20
    mov     x2, x21
    mov     x3, x22
    bl      secondary_main
    b       .

// Turns the stage-1 MMU and the caches on. x0: `MmuRegisters`. Clobbers x1 to x4.
enable_mmu:
    ldp     x1, x2, [x0]
    ldp     x3, x4, [x0, #16]
    msr     MAIR_EL1, x1
    msr     TCR_EL1, x2
    msr     TTBR0_EL1, x3
    isb                             // The registers hold before the invalidation and the walks below.
    tlbi    vmalle1
    dsb     nsh                     // No entry from before survives the MMU's start.
    isb
    msr     SCTLR_EL1, x4
    isb                             // The next fetch is translated.
    ret
