//! A model of an Arm core's TLBs: what the loads, stores and fetches of a guest cost in walks of the translation tables.
//!
//! An access goes to a level-1 TLB (one for fetches, one for data), then to a level-2 TLB for both, then to a walk in two
//! dimensions: each stage-1 descriptor lies at an IPA that stage 2 translates first. A TLB entry is combined: it has the
//! smaller one of the two leaves' sizes. Each stage has a walk cache of its own. All replace the entry that was used least
//! recently.
//!
//! [`Core`] is one PE's share. It reads tables by the trait [`Memory`] and is told of TLB invalidations, which
//! [`instruction::decode`] finds in a program. The sizes are those of a Neoverse N1 ([`Sizes`]) and can be chosen.
//!
//! The model counts; it knows no time. It holds for the 4 KiB granule with addresses of up to 48 bits.
#![forbid(unsafe_code)]

mod census;
mod counts;
pub mod instruction;
mod invalidate;
mod lru;
mod memory;
mod model;
mod record;
mod registers;
mod sizes;
mod tlb;
mod walker;

pub use census::{Census, census};
pub use counts::{Counts, ENTRY_SIZES, Kind};
pub use invalidate::{Invalidation, Operation, Scope};
pub use memory::{Memory, Problem};
pub use model::{Access, Answer, Core, Level};
pub use record::Record;
pub use registers::Registers;
pub use sizes::{Capacity, SizeError, Sizes};
