//! What is checked.

use crate::system::{self, Pipe};
use core::arch::global_asm;

global_asm!(include_str!("held.S"), options(raw));

unsafe extern "C" {
    fn held_simd(from: *const u64, to: *mut u64, turns: u64);
    fn held_sve(from: *const u64, to: *mut u64, turns: u64);
    fn held_sve_bytes() -> u64;
    fn held_float(count: u64) -> u64;
    fn held_sign(pointer: u64, modifier: u64) -> u64;
}

/// HWCAP_SVE and HWCAP_PACA (Linux, arch/arm64/include/uapi/asm/hwcap.h).
const SVE: u64 = 1 << 22;
const POINTER_AUTHENTICATION: u64 = 1 << 30;
/// Words of 32 vectors and 16 predicates of the longest kind: 2048 bits.
const WORDS: usize = (32 * 256 + 16 * 32) / 8;
/// Turns of a loop while registers hold: most of the program's time.
const TURNS: u64 = 2_000_000;

/// The checks, and what they compare with.
pub struct Checks {
    capabilities: u64,
    from: [u64; WORDS],
    to: [u64; WORDS],
    seed: u64,
    /// The sum and the signature of the first time.
    sum: u64,
    signature: u64,
    /// The latest time that was seen.
    now: u64,
}

impl Checks {
    /// For a CPU with these capabilities.
    pub fn new(capabilities: u64) -> Self {
        let mut checks = Self {
            capabilities,
            from: [0; WORDS],
            to: [0; WORDS],
            seed: 0x9e37_79b9_7f4a_7c15,
            sum: sum(),
            signature: 0,
            now: system::now(),
        };
        checks.signature = checks.sign();
        checks
    }

    /// Checks until something is wrong, and returns what.
    pub fn run(mut self) -> &'static str {
        let Ok(pipe) = Pipe::new() else { return "no pipe" };
        loop {
            let wrong = self.vectors().or_else(|| self.numbers()).or_else(|| self.time()).or_else(|| self.pipe(&pipe));
            if let Some(wrong) = wrong {
                return wrong;
            }
        }
    }

    fn vectors(&mut self) -> Option<&'static str> {
        let Self { from, to, seed, .. } = self;
        from.fill_with(|| {
            // xorshift64
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            *seed
        });
        const VECTORS: usize = 32 * 2;
        // SAFETY: it loads and stores so many words, which both buffers have; the compiler uses no vector register.
        unsafe { held_simd(from.as_ptr(), to.as_mut_ptr(), TURNS) };
        if from.iter().zip(&*to).take(VECTORS).any(|(from, to)| from != to) {
            return Some("vector registers");
        }
        if self.capabilities & SVE == 0 {
            return None;
        }
        // SAFETY: the CPU has SVE, and both buffers have room for the longest vectors.
        let bytes = unsafe {
            held_sve(from.as_ptr(), to.as_mut_ptr(), TURNS);
            held_sve_bytes()
        };
        from.iter().zip(&*to).take(bytes as usize / 8).any(|(from, to)| from != to).then_some("SVE's registers")
    }

    /// Floating point, and signed pointers: the same each time.
    fn numbers(&self) -> Option<&'static str> {
        let signed = (self.sign() != self.signature).then_some("signed pointers");
        (sum() != self.sum).then_some("floating point").or(signed)
    }

    fn sign(&self) -> u64 {
        if self.capabilities & POINTER_AUTHENTICATION == 0 {
            return 0;
        }
        // SAFETY: the CPU has FEAT_PAuth; it touches no memory.
        unsafe { held_sign(0x12_3456_7890, 42) }
    }

    /// Time does not go back, and a sleep is as long as it should be, or longer.
    fn time(&mut self) -> Option<&'static str> {
        const MILLISECOND: u64 = 1_000_000;
        let before = system::now();
        system::sleep(MILLISECOND);
        let after = system::now();
        let wrong = if before < self.now {
            Some("time goes back")
        } else {
            (after < before + MILLISECOND).then_some("a sleep is too short")
        };
        self.now = after;
        wrong
    }

    fn pipe(&mut self, pipe: &Pipe) -> Option<&'static str> {
        const BYTES: usize = 2048;
        let (from, to) = (system::bytes(&self.from), system::bytes_mut(&mut self.to));
        let (from, to) = (from.get(..BYTES)?, to.get_mut(..BYTES)?);
        to.fill(0);
        (pipe.write(from) != BYTES as u64 || pipe.read(to) != BYTES as u64 || from != to).then_some("a pipe")
    }
}

fn sum() -> u64 {
    // SAFETY: it touches no memory, and the compiler uses no floating-point register.
    unsafe { held_float(1000) }
}
