//! What kind of kernel the guest's kernel module is, and where everything of the guest's goes.
//!
//! Source: Linux, `Documentation/arch/arm64/booting.rst`. Pure: ranges in, a plan out.

mod error;
mod header;
mod plan;

pub use error::ImageError;
pub use header::{Kernel, examine};
pub use plan::{LoadPlan, Move, Request, plan};
