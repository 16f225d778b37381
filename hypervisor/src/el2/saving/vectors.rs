//! What the guest has in the vector registers. EL2 uses none of them, so they are the guest's while it is stopped.
//!
//! Saved as they are: Q0 to Q31 where there is no SVE, else Z, P and FFR with the longest vectors, which EL2 has
//! (`ZCR_EL2.LEN`); in streaming mode with the streaming ones, and then ZA (Arm ARM, B1.4 and B1.5).

use crate::el2::base::cpu::this_cpu;
use crate::el2::base::registers::{isb, read_register};
use core::arch::global_asm;
use hypervisor::cpu_id::CpuId;

global_asm!(include_str!("vectors.S"));

unsafe extern "C" {
    fn save_simd(to: *mut u8);
    fn load_simd(from: *const u8);
    fn save_sve(to: *mut u8, ffr: u64);
    fn load_sve(from: *const u8, ffr: u64);
    fn vector_bytes() -> u64;
    fn streaming_vector_bytes() -> u64;
    fn save_za(to: *mut u8);
    fn load_za(from: *const u8);
}

/// The most bytes of a vector register.
const MAX_VECTOR: usize = 256;
/// Q0 to Q31.
const SIMD_BYTES: usize = 32 * 16;

/// SVCR.SM: streaming mode. SVCR.ZA: ZA has contents.
const SM: u64 = 1 << 0;
const ZA: u64 = 1 << 1;

/// What is in use on the executing CPU, and so what is saved.
struct Shape {
    /// Bytes of Z, P and FFR, or of Q0 to Q31.
    vectors: usize,
    sve: bool,
    ffr: bool,
    /// Bytes of ZA.
    za: usize,
}

/// Bytes that a CPU with these ID registers needs at most.
pub fn most_bytes(id: &CpuId) -> usize {
    match (id.has_sve(), id.has_sme()) {
        (false, false) => SIMD_BYTES,
        (true, false) => sve_bytes(MAX_VECTOR),
        (_, true) => sve_bytes(MAX_VECTOR) + MAX_VECTOR * MAX_VECTOR,
    }
}

/// Z0 to Z31, P0 to P15, FFR.
const fn sve_bytes(vector: usize) -> usize {
    32 * vector + 17 * vector / 8
}

impl Shape {
    /// Of the executing CPU, with this in SVCR.
    fn new(id: &CpuId, svcr: u64) -> Self {
        let streaming = svcr & SM != 0;
        // SAFETY: the CPU has SME, and CPTR_EL2 lets it be used.
        let svl = if id.has_sme() { unsafe { streaming_vector_bytes() as usize } } else { 0 };
        let sve = id.has_sve() || streaming;
        let vector = match (streaming, sve) {
            (true, _) => svl,
            // SAFETY: the CPU has SVE, and CPTR_EL2 lets it be used.
            (false, true) => unsafe { vector_bytes() as usize },
            (false, false) => 0,
        };
        Self {
            vectors: if sve { sve_bytes(vector) } else { SIMD_BYTES },
            sve,
            // FEAT_SME_FA64 gives streaming mode an FFR; which registers EL2 itself may use then, SMCR_EL2.FA64 says.
            ffr: id.has_sve() && (!streaming || id.smfr0 >> 63 != 0),
            za: if svcr & ZA != 0 { svl * svl } else { 0 },
        }
    }
}

/// SVCR of the executing CPU, 0 where it has none.
fn svcr(id: &CpuId) -> u64 {
    if id.has_sme() { read_register!("S3_3_C4_C2_2") } else { 0 }
}

/// The bytes that [`save`] copies on a CPU with these ID registers and this in SVCR. Nothing where it can have no such SVCR, or
/// where the executing CPU has not the same kinds of vectors, and does not know how large they are.
pub fn bytes(id: &CpuId, svcr: u64) -> Option<usize> {
    let own = this_cpu().id.get()?;
    let alike = (own.has_sve(), own.has_sme()) == (id.has_sve(), id.has_sme());
    let possible = if id.has_sme() { SM | ZA } else { 0 };
    (alike && svcr & !possible == 0).then(|| Shape::new(id, svcr)).map(|shape| shape.vectors + shape.za)
}

/// Copies the guest's vector registers, and says how many bytes they are; nothing where there is too little room.
pub fn save(id: &CpuId, to: &mut [u8]) -> Option<usize> {
    let shape = Shape::new(id, svcr(id));
    let (vectors, za) = to.get_mut(..shape.vectors + shape.za)?.split_at_mut(shape.vectors);
    let (vectors, za) = (vectors.as_mut_ptr(), za.as_mut_ptr());
    if shape.sve {
        // SAFETY: the shape says that the CPU has them, and how large they are; registers are only read.
        unsafe { save_sve(vectors, shape.ffr.into()) };
    } else {
        // SAFETY: likewise.
        unsafe { save_simd(vectors) };
    }
    if shape.za != 0 {
        // SAFETY: likewise.
        unsafe { save_za(za) };
    }
    Some(shape.vectors + shape.za)
}

/// Puts back what [`save`] has copied; SVCR is as it was then. Nothing if the bytes are not as many as SVCR asks for.
pub fn restore(id: &CpuId, from: &[u8]) -> Option<()> {
    // SVCR holds for what comes.
    isb();
    let shape = Shape::new(id, svcr(id));
    let (vectors, za) = from.split_at_checked(shape.vectors).filter(|(_, za)| za.len() == shape.za)?;
    if shape.sve {
        // SAFETY: as in `save`; no code of EL2's has anything in these registers.
        unsafe { load_sve(vectors.as_ptr(), shape.ffr.into()) };
    } else {
        // SAFETY: likewise.
        unsafe { load_simd(vectors.as_ptr()) };
    }
    if shape.za != 0 {
        // SAFETY: likewise.
        unsafe { load_za(za.as_ptr()) };
    }
    Some(())
}
