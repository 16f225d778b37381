// From reset at EL3 to Rust at S-EL2, on every CPU. QEMU's `virt` with secure=on starts all CPUs here, at EL3, with the
// MMU off, when it is given an ELF.

.equ SCR_EL3_VALUE, (1 << 18) | (1 << 17) | (1 << 16) | (1 << 10) | (1 << 8) | (3 << 4)
    // EEL2: there is a Secure EL2. API, APK: pointer authentication does not trap. RW: it is AArch64. HCE: HVC works.
    // Bits 5:4 are RES1. NS = 0: all of it is Secure.
.equ SPSR_EL2H_MASKED, 0x3c9
.equ SCTLR_EL2_RES1, 0x30c50830
.equ SCTLR_EL2_ON, SCTLR_EL2_RES1 | (1 << 12) | (1 << 3) | (1 << 2) | (1 << 0)
    // I, SA, C, M.
.equ MAIR_VALUE, 0xff00
    // Attribute 0: Device-nGnRnE. Attribute 1: Normal, write-back.
.equ TCR_VALUE, (1 << 31) | (1 << 23) | (2 << 16) | (3 << 12) | (1 << 10) | (1 << 8) | 25
    // RES1, 40-bit PA, walks inner shareable and write-back, 4 KiB granule, 39-bit VA: the walk starts at level 1.
.equ CPUS, 2
.equ STACK_BITS, 16

.section .text.boot, "ax"
.global _start
_start:
    mrs     x0, CurrentEL
    cmp     x0, #(3 << 2)
    b.ne    park
    mrs     x0, id_aa64pfr0_el1
    tst     x0, #(0xf << 36)
    b.eq    no_secure_el2
    ldr     x0, =SCR_EL3_VALUE
    msr     scr_el3, x0
    msr     cptr_el3, xzr
    ldr     x0, =SCTLR_EL2_RES1
    msr     sctlr_el2, x0
    adr     x0, secure_el2
    msr     elr_el3, x0
    mov     x0, #SPSR_EL2H_MASKED
    msr     spsr_el3, x0
    isb
    eret

secure_el2:
    mrs     x19, mpidr_el1
    and     x19, x19, #0xff
    cmp     x19, #CPUS
    b.hs    park
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el2, x0
    // The tables are constants, so nothing has to be cleaned or waited for. Caches and TLBs are clean after reset.
    adrp    x0, stage1_root
    msr     ttbr0_el2, x0
    ldr     x0, =MAIR_VALUE
    msr     mair_el2, x0
    ldr     x0, =TCR_VALUE
    msr     tcr_el2, x0
    tlbi    alle2
    // Completes the invalidation before the MMU is on.
    dsb     nsh
    isb
    ldr     x0, =SCTLR_EL2_ON
    msr     sctlr_el2, x0
    isb
    adrp    x0, stacks
    add     x1, x19, #1
    add     x0, x0, x1, lsl #STACK_BITS
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    bl      main

// ID_AA64PFR0_EL1.SEL2 is 0: there is nowhere to go. Says so on the UART, and ends the machine with status 3 (semihosting).
no_secure_el2:
    mrs     x0, mpidr_el1
    tst     x0, #0xff
    b.ne    park
    adr     x0, no_secure_el2_text
    mov     x1, #0x09000000
1:  ldrb    w2, [x0], #1
    cbz     w2, 2f
    str     w2, [x1]
    b       1b
2:  mov     x0, #0x18
    adr     x1, no_secure_el2_exit
    hlt     #0xf000
park:
    wfe
    b       park

.balign 8
no_secure_el2_exit:
    .quad   0x20026, 3
no_secure_el2_text:
    .asciz  "[spm] this CPU has no Secure EL2 (FEAT_SEL2); QEMU's `max` has\r\n[spm] end: refused\r\n"
.balign 4

// The SPM's own map: each 2 MiB block that it uses, at its physical address (linker/secure-partition-spm.ld).
.equ BLOCK, 1
.equ TABLE, 3
.equ DEVICE, (1 << 10) | (1 << 6)
.equ NORMAL, (1 << 10) | (3 << 8) | (1 << 6) | (1 << 2)
    // Access flag, inner shareable, bit 6 (RES1 at EL2), attribute 1.
.equ READ_ONLY, (1 << 7)
.equ NO_EXECUTE, (1 << 54)

.section .rodata.stage1, "a"
.balign 4096
stage1_root:
    .quad   NO_EXECUTE | DEVICE | BLOCK         // The first GiB: devices
    .quad   stage1_ram + TABLE
    .fill   510, 8, 0
stage1_ram:
    .quad   0                                   // 0x40000000: QEMU's device tree, not used
    .quad   0x40200000 | READ_ONLY | NORMAL | BLOCK                  // Code and constants
    .quad   0x40400000 | NO_EXECUTE | NORMAL | BLOCK                 // Data
    .quad   0x40600000 | NO_EXECUTE | NORMAL | BLOCK                 // Stacks, table frames
    .quad   0                                   // 0x40800000: the partitions' program
    .set    block, 0x40a00000                   // The partitions' memory: buffers, zeroing
    .rept   4
    .quad   block | NO_EXECUTE | NORMAL | BLOCK
    .set    block, block + 0x200000
    .endr
    .fill   503, 8, 0

.section .stacks, "aw", %nobits
.balign 1 << STACK_BITS
stacks:
    .skip   CPUS << STACK_BITS
