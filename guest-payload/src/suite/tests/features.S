// One function for each feature of the CPU: uses it, and returns what it computed. Nothing here touches the stack, so an
// exception may end any of them. Registers that are changed are put back on the way out where other code would notice.

    .macro  feature name
    .global feature_\name
    .balign 4
feature_\name:
    .endm

    // Lets EL1 use SIMD&FP, SVE and SME; the old value is in x16.
    .macro  vectors_on
    mrs     x16, CPACR_EL1
    mov     x17, #(3 << 20 | 3 << 16)
    movk    x17, #(3 << 4 | 3 | 3 << 8), lsl #16
    orr     x17, x17, x16
    msr     CPACR_EL1, x17
    isb
    .endm
    .macro  vectors_back
    msr     CPACR_EL1, x16
    isb
    ret
    .endm

    .section .text.features, "ax"
    .arch   armv8.7-a+fp+simd+crc+crypto+sha3+sve2+memtag+rng+ssbs+profile+ls64

// 1.5 + 2.25.
    feature floating_point
    vectors_on
    fmov    d0, #1.5
    fmov    d1, #2.25
    fadd    d0, d0, d1
    fmov    x0, d0
    vectors_back

// 16 × (3 + 4).
    feature simd
    vectors_on
    movi    v0.16b, #3
    movi    v1.16b, #4
    add     v0.16b, v0.16b, v1.16b
    addv    b0, v0.16b
    umov    w0, v0.b[0]
    vectors_back

// One round on zeros: InvShiftRows and SubBytes of 0 is 0x63 in every byte, MixColumns keeps that.
    feature aes
    vectors_on
    movi    v0.16b, #0
    movi    v1.16b, #0
    aese    v0.16b, v1.16b
    aesmc   v0.16b, v0.16b
    umov    x0, v0.d[1]
    vectors_back

    feature sha256
    vectors_on
    movi    v0.16b, #0
    movi    v1.16b, #0
    sha256su0 v0.4s, v1.4s
    umov    x0, v0.d[0]
    vectors_back

// CRC-32 of one zero byte, start value -1.
    feature crc32
    mov     w0, #-1
    mov     w1, #0
    crc32b  w0, w0, w1
    ret

// Bytes of a vector with ZCR_EL1.LEN = x0, if it computes correctly; else 0.
    feature sve
    vectors_on
    mrs     x15, S3_0_C1_C2_0       // ZCR_EL1
    msr     S3_0_C1_C2_0, x0
    isb
    ptrue   p0.b
    mov     z0.b, #1
    mov     z1.b, #2
    add     z0.b, z0.b, z1.b
    uaddv   d0, p0, z0.b            // 3 × the bytes of a vector
    fmov    x1, d0
    cntb    x0
    add     x2, x0, x0, lsl #1
    cmp     x1, x2
    csel    x0, x0, xzr, eq
    msr     S3_0_C1_C2_0, x15
    vectors_back

// Bytes of a streaming vector with SMCR_EL1.LEN = x0.
    feature sme
    .arch   armv9.2-a+sme
    vectors_on
    mrs     x15, S3_0_C1_C2_6       // SMCR_EL1
    msr     S3_0_C1_C2_6, x0
    isb
    mov     x1, #0x5a5a
    msr     S3_3_C13_C0_5, x1       // TPIDR2_EL0
    mrs     x2, S3_3_C13_C0_5
    mrs     x3, S3_1_C0_C0_6        // SMIDR_EL1
    smstart
    zero    {za}
    rdsvl   x0, #1
    cntb    x4
    smstop
    cmp     x0, x4                  // In streaming mode the two agree.
    ccmp    x1, x2, #0, eq
    csel    x0, x0, xzr, eq
    msr     S3_0_C1_C2_6, x15
    vectors_back
    .arch   armv8.7-a+fp+simd+crc+crypto+sha3+sve2+memtag+rng+ssbs+profile+ls64

// Signs x0 with key IA and modifier x1, authenticates it again. Returns the address if the signature was there and the
// address came back, else 0.
    feature pauth
    mrs     x15, SCTLR_EL1
    orr     x14, x15, #1 << 31      // EnIA
    mrs     x12, APIAKeyLo_EL1
    mrs     x13, APIAKeyHi_EL1
    mov     x10, #0x1234
    movk    x10, #0xfedc, lsl #48
    msr     APIAKeyLo_EL1, x10
    msr     APIAKeyHi_EL1, x10
    msr     SCTLR_EL1, x14
    isb
    mov     x2, x0
    mov     x3, x0
    pacia   x2, x1
    mov     x4, x2
    autia   x4, x1
    msr     SCTLR_EL1, x15
    msr     APIAKeyLo_EL1, x12
    msr     APIAKeyHi_EL1, x13
    isb
    cmp     x2, x3
    ccmp    x4, x3, #0, ne
    csel    x0, x3, xzr, eq
    ret

// The 32-bit signature of PACGA with all five keys written.
    feature pauth_generic
    mov     x10, #0x77
    msr     APGAKeyLo_EL1, x10
    msr     APGAKeyHi_EL1, x10
    msr     APIBKeyLo_EL1, x10
    msr     APIBKeyHi_EL1, x10
    msr     APDAKeyLo_EL1, x10
    msr     APDAKeyHi_EL1, x10
    msr     APDBKeyLo_EL1, x10
    msr     APDBKeyHi_EL1, x10
    isb
    pacga   x0, x0, x1
    ret

// A branch to a landing pad; returns 1.
    feature bti
    adr     x1, 1f
    br      x1
1:  bti     j
    mov     x0, #1
    ret

// Instructions that only make and move tags in addresses: IRG with the exclude mask of all but tag 5.
    feature mte_instructions
    mrs     x15, S3_0_C1_C0_6       // GCR_EL1
    mov     x1, #0xffdf
    msr     S3_0_C1_C0_6, x1
    mrs     x14, SCTLR_EL1
    mov     x1, #1 << 43            // ATA
    orr     x1, x1, x14
    msr     SCTLR_EL1, x1
    isb
    mov     x0, #0
    irg     x0, x0
    msr     SCTLR_EL1, x14
    msr     S3_0_C1_C0_6, x15
    isb
    lsr     x0, x0, #56
    ret

// Stores tag 5 for the granule at x0 (tagged memory) and loads it again.
    feature mte_memory
    mrs     x14, SCTLR_EL1
    mov     x1, #1 << 43            // ATA
    orr     x1, x1, x14
    msr     SCTLR_EL1, x1
    isb
    mov     x2, #0x0500 << 48
    orr     x2, x2, x0
    stg     x2, [x2]
    mov     x3, x0
    ldg     x3, [x0]
    msr     SCTLR_EL1, x14
    isb
    lsr     x0, x3, #56
    ret

// Cycles that a loop took, by the PMU's cycle counter.
    feature pmu
    mov     x1, #1
    msr     PMCR_EL0, x1
    mov     x1, #0
    msr     PMCCFILTR_EL0, x1
    mov     x1, #1 << 31
    msr     PMCNTENSET_EL0, x1
    isb
    mrs     x2, PMCCNTR_EL0
    mov     x3, #1000
1:  subs    x3, x3, #1
    b.ne    1b
    isb
    mrs     x0, PMCCNTR_EL0
    sub     x0, x0, x2
    msr     PMCNTENCLR_EL0, x1
    msr     PMCR_EL0, xzr
    isb
    ret

// Writes every event counter that PMCR_EL0.N promises; returns how many hold what was written.
    feature pmu_counters
    mrs     x1, PMCR_EL0
    ubfx    x1, x1, #11, #5
    mov     x0, #0
    mov     x2, #0
1:  cmp     x2, x1
    b.hs    2f
    msr     PMSELR_EL0, x2
    isb
    msr     PMXEVTYPER_EL0, xzr
    add     x3, x2, #0x100
    msr     PMXEVCNTR_EL0, x3
    isb
    mrs     x4, PMXEVCNTR_EL0
    cmp     x4, x3
    cinc    x0, x0, eq
    add     x2, x2, #1
    b       1b
2:  ret

    feature rng
    mrs     x0, RNDR
    mrs     x0, RNDRRS
    mov     x0, #1
    ret

    feature data_persistence
    dc      cvap, x0
    dsb     sy
    ret
    feature deep_persistence
    dc      cvadp, x0
    dsb     sy
    ret

    feature speculation_barriers
    sb
    ret
    feature prediction_restriction
    cfp     rctx, x1
    dvp     rctx, x1
    cpp     rctx, x1
    ret

// PSTATE fields: set, read, clear. Returns what was read while it was set.
    feature dit
    msr     DIT, #1
    mrs     x0, DIT
    msr     DIT, #0
    ret
    feature ssbs
    msr     SSBS, #1
    mrs     x0, SSBS
    msr     SSBS, #0
    ret
    feature pan
    msr     PAN, #1
    mrs     x0, PAN
    msr     PAN, #0
    ret
    feature uao
    msr     UAO, #1
    mrs     x0, UAO
    msr     UAO, #0
    ret

    feature tlbi_outer
    tlbi    vmalle1os
    dsb     osh
    isb
    ret
// One page at address 0 (TG 4 KiB, SCALE 0, NUM 0: two pages).
    feature tlbi_range
    mov     x1, #1 << 46
    tlbi    rvae1is, x1
    dsb     ish
    isb
    ret

    feature self_synchronized_counter
    mrs     x1, S3_3_C14_C0_6       // CNTVCTSS_EL0
    mrs     x2, S3_3_C14_C0_5       // CNTPCTSS_EL0
    mrs     x0, S3_3_C14_C0_6
    sub     x0, x0, x1
    ret

// Waits until the virtual counter reaches x0 at most.
    feature timed_wait
    wfit    x0
    ret
