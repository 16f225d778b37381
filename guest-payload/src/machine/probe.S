// Single accesses, each a function of its own: x0 = address, x1 = value, result in x0. They touch no stack, so that
// `catch` may end them anywhere.

    .macro  probe name
    .global probe_\name
probe_\name:
    .endm

    .section .text.probe, "ax"
    .arch   armv8.1-a

    probe   read8
    ldrb    w0, [x0]
    ret
    probe   read16
    ldrh    w0, [x0]
    ret
    probe   read32
    ldr     w0, [x0]
    ret
    probe   read64
    ldr     x0, [x0]
    ret
    probe   read_pair
    ldp     x0, x1, [x0]
    ret
    probe   read_acquire
    ldar    x0, [x0]
    ret
    probe   read_exclusive
    ldxr    x0, [x0]
    clrex
    ret
    probe   write8
    strb    w1, [x0]
    ret
    probe   write16
    strh    w1, [x0]
    ret
    probe   write32
    str     w1, [x0]
    ret
    probe   write64
    str     x1, [x0]
    ret
    probe   write_pair
    stp     x1, x1, [x0]
    ret
    probe   write_release
    stlr    x1, [x0]
    ret
    probe   write_pre_index
    str     x1, [x0, #0]!
    ret
    probe   write_post_index
    str     x1, [x0], #8
    ret
    // Reads the line, then tries to write it back: one attempt.
    probe   write_exclusive
    ldxr    x2, [x0]
    stxr    w3, x1, [x0]
    mov     w0, w3
    ret
    probe   atomic_add
    ldadd   x1, x0, [x0]
    ret
    probe   atomic_swap
    swp     x1, x0, [x0]
    ret
    probe   atomic_compare
    mov     x2, x1
    cas     x2, x1, [x0]
    mov     x0, x2
    ret
    probe   zero_block
    dc      zva, x0
    ret
    // Compares with a value that is not there.
    probe   atomic_compare_other
    mov     x2, #0x5a5a
    cas     x2, x1, [x0]
    mov     x0, x2
    ret
    // Stores without the reservation that it would take.
    probe   write_without_reservation
    clrex
    stxr    w3, x1, [x0]
    mov     w0, w3
    ret
    probe   prefetch_load
    prfm    pldl1keep, [x0]
    ret
    probe   prefetch_store
    prfm    pstl1keep, [x0]
    ret
    probe   prefetch_fetch
    prfm    plil1keep, [x0]
    ret
    probe   translate_read
    at      s1e1r, x0
    isb
    ret
    probe   translate_write
    at      s1e1w, x0
    isb
    ret
    probe   clean_line
    dc      cvac, x0
    dsb     ish
    ret
    probe   clean_and_invalidate_line
    dc      civac, x0
    dsb     ish
    ret
    probe   invalidate_line
    dc      ivac, x0
    dsb     ish
    ret
    probe   invalidate_instructions
    ic      ivau, x0
    dsb     ish
    isb
    ret
    // Executes what is at the address; returns if that returns.
    probe   execute
    br      x0
