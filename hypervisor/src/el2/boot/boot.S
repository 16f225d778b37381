// The arm64 Image header, and the way of each CPU from its first instruction to Rust.
//
// Sources: Linux, Documentation/arch/arm64/booting.rst; Arm ARM (DDI 0487) D8.2.

// SCTLR_EL2 with E2H = 0: the RES1 bits, MMU and caches off.
.equ SCTLR_OFF, 0x30c50830
// M, C, SA, I: MMU, data cache, stack alignment check, instruction cache.
.equ SCTLR_EARLY, SCTLR_OFF | (1 << 0) | (1 << 2) | (1 << 3) | (1 << 12)
// WXN as well: nothing that can be written can be executed.
.equ SCTLR_FINAL, SCTLR_EARLY | (1 << 19)
// Attribute 0 is Device-nGnRE, attribute 1 Normal write-back.
.equ MAIR, 0xff04
// RES1 bits, 48-bit addresses (T0SZ = 16), 4 KiB granule, walks write-back inner shareable; PS is filled in.
.equ TCR, (1 << 31) | (1 << 23) | (3 << 12) | (1 << 10) | (1 << 8) | 16
// HCR_EL2.RW: EL1 is AArch64. E2H = 0, no stage 2 yet.
.equ HCR, 1 << 31

.macro load_constant register, value
    movz    \register, #((\value) >> 16 & 0xffff), lsl #16
    movk    \register, #((\value) & 0xffff)
.endm

// EL2's own controls: MMU off, nothing trapped, vectors in place, the TLB empty.
.macro reset_el2
    load_constant x1, SCTLR_OFF
    msr     sctlr_el2, x1
    msr     spsel, #1
    load_constant x1, HCR
    msr     hcr_el2, x1
    // The MMU is off before anything below relies on it.
    isb
    adrp    x1, {vectors}
    add     x1, x1, :lo12:{vectors}
    msr     vbar_el2, x1
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    // The invalidations are complete before translation can start.
    dsb     nsh
    isb
.endm

// Translation on, with the root table in \root (clobbers x1, x2).
.macro enable_mmu root, sctlr
    load_constant x1, MAIR
    msr     mair_el2, x1
    load_constant x1, TCR
    // PS follows ID_AA64MMFR0_EL1.PARange, at most 5 (48 bits): more needs LPA.
    mrs     x2, id_aa64mmfr0_el1
    and     x2, x2, #0xf
    cmp     x2, #5
    b.ls    1f
    mov     x2, #5
1:  bfi     x1, x2, #16, #3
    msr     tcr_el2, x1
    msr     ttbr0_el2, \root
    load_constant x1, \sctlr
    // The translation registers are in force before the MMU is.
    isb
    msr     sctlr_el2, x1
    isb
.endm

    .section .text.header, "ax"
    .global image_header
image_header:
    // Its bytes begin with "MZ", for the file is a PE file as well (efi.S); it changes nothing but the condition flags.
    ccmp    x18, #0, #0xd, pl
    b       primary_entry
    .quad   0                           // text_offset
    .quad   __image_size
    .quad   0xa                         // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   __pe_header

    .text
// x0: the device tree. MMU and data cache are off; the image was cleaned to the point of coherency.
primary_entry:
    msr     daifset, #0xf
    mov     x19, x0
    mov     x29, xzr
    mov     x30, xzr
    mrs     x20, CurrentEL
    ubfx    x20, x20, #2, #2
    cmp     x20, #2
    b.ne    1f
    reset_el2
1:
    adrp    x21, image_header
    bl      relocate
    mov     x30, xzr
    adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
4:  cmp     x1, x2
    b.hs    5f
    stp     xzr, xzr, [x1], #16
    b       4b
5:
    // .data as the file has it, for a copy of the image (moving.rs): nothing has written it but `relocate`, which does so
    // again wherever the copy lies. x2: the end of .bss, which the copy of .data lies behind.
    adrp    x1, __rodata_end
    add     x1, x1, :lo12:__rodata_end
    adrp    x3, __bss_start
    add     x3, x3, :lo12:__bss_start
4:  ldp     x4, x5, [x1], #16
    stp     x4, x5, [x2], #16
    cmp     x1, x3
    b.lo    4b

    adrp    x22, {boot_area}
    add     x22, x22, :lo12:{boot_area}
    add     x1, x22, {stack_top}
    mov     sp, x1
    cmp     x20, #2
    b.ne    wrong_level
    msr     tpidr_el2, x22

    adrp    x23, {early_tables}
    add     x23, x23, :lo12:{early_tables}
    mov     x0, x23
    mov     x1, x19
    bl      {fill_early_tables}

    // What was written with the caches off must not be hidden by lines that were cached before. The heap, behind it, has not
    // been written.
    // The stores, which went to memory, come before the invalidations.
    dmb     sy
    adrp    x1, __relro_start
    adrp    x2, __pristine_end
    add     x2, x2, :lo12:__pristine_end
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3
6:  dc      ivac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    6b
    // The invalidations are complete before the caches are on.
    dsb     sy

    enable_mmu x23, SCTLR_EARLY
    mov     x0, x19
    mov     x1, x21
    bl      {primary_main}
    b       park

// x19: the device tree; x20: the exception level, which is not EL2. The MMU is as it was: off.
wrong_level:
    adrp    x1, park_vectors
    add     x1, x1, :lo12:park_vectors
    cmp     x20, #1
    b.ne    1f
    msr     vbar_el1, x1
    b       2f
1:  msr     vbar_el3, x1
2:  isb
    mov     x0, x19
    mov     x1, x20
    bl      {wrong_exception_level}
park:
    wfi
    b       park

    // Between the headers and the end of their page, which not every firmware loads: an image that firmware started is at EL2.
    .section .text.park_vectors, "ax"
    .balign 2048
park_vectors:
    .rept   16
    .balign 128
    b       park
    .endr

// Each R_AARCH64_RELATIVE (1027) entry: the word at base + offset is base + addend. That can be done again after a copy
// to another place. x21: where the image begins. Clobbers x1 to x5; needs no stack.
    .text
    .global relocate
relocate:
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     x4, #1027
    b.ne    park
    add     x5, x5, x21
    str     x5, [x21, x3]
    b       1b
2:  ret

// enter_image(tree, image): leaves this code for the image at x1, with x0 as it is. Both, the tree, and the instructions from
// here to enter_image_end, are clean to the point of coherency. Does not return.
    .global enter_image
    .global enter_image_end
enter_image:
    msr     daifset, #0xf
    // Caches and MMU off, in whatever form firmware has EL2 (HCR_EL2.E2H): M, C and I are the same bits in both.
    mrs     x2, sctlr_el2
    bic     x2, x2, #(1 << 0)
    bic     x2, x2, #(1 << 2)
    bic     x2, x2, #(1 << 12)
    msr     sctlr_el2, x2
    // The MMU is off before the first fetch that counts on it.
    isb
    // Nothing that was fetched through the caches before is executed in the image, whose place had other contents.
    ic      iallu
    dsb     nsh
    isb
    br      x1
enter_image_end:

// A CPU that PSCI has started. x0: its area. MMU and caches are off.
    .global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mov     x19, x0
    mov     x29, xzr
    mov     x30, xzr
    reset_el2
    msr     tpidr_el2, x19
    adrp    x20, {root_table}
    ldr     x20, [x20, :lo12:{root_table}]
    enable_mmu x20, SCTLR_FINAL
    add     x1, x19, {stack_top}
    mov     sp, x1
    mov     x0, x19
    bl      {secondary_main}
    b       park

// Changes to the translation tables at x0, for good. Between two tables the MMU is off and no data is touched: the old
// and the new one may map the same address with different sizes, which no TLB may see together.
    .global switch_tables
switch_tables:
    // The tables' contents are seen by this CPU's walks before it uses them.
    dsb     ishst
    mrs     x1, sctlr_el2
    bic     x1, x1, #1
    msr     sctlr_el2, x1
    isb
    tlbi    alle2
    // The old entries are gone before the new tables are used.
    dsb     nsh
    isb
    enable_mmu x0, SCTLR_FINAL
    ret
