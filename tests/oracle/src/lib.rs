#![doc = include_str!("../README.md")]
//!
//! # How it works
//!
//! [`Model`] implements the engine's two traits, so it sees every load, store and compare-exchange of a descriptor, every
//! DSB and TLBI, every frame, and (through [`Checked`]) the beginning and the end of each operation. It assumes that each PE
//! walks every address between any two of these events, from the root and from every walk-cache entry, and reads any value
//! that may be seen. So what a PE may hold is what memory says now, and what it said before until an invalidation has taken
//! it away; only the second part is stored.
//!
//! - **Stores** are seen by walks, old and new, until a DSB of the storing PE, or of one that has read the new value. What
//!   software on other PEs loads is in the order of the stores, or with [`Setup::late_stores`] in another.
//! - **A TLBI** acts when a DSB of the same PE completes it: ISH for all, NSH for local ones. It takes what it covers, unless
//!   a walk could still bring it back after it was issued. Stage-2 forms leave entries that combine both stages; VMALLE1 takes
//!   those, unless they can be made anew from a stage-2 entry that is still there (R_TVTYQ).
//! - **A contiguous run** is cached whole and by its members (R_LQLSD).
//! - **Hardware** sets S2AP\[1\] in any descriptor with DBM, whenever it likes ([`Setup::mark_rate`]).
//! - **The guest's own stage 1** is a map from pages of VA to pages of IPA. What a PE may hold under a VA decides whether an
//!   access gets through ([`Checked::access`]): `VAAE1` takes that, and a fault that was answered must not come back.
//!
//! [`Verdict`] has the eleven rules that it judges by.
//!
//! # Use in your own tests
//!
//! ```
//! use stage2::features::{BbmLevel, Features, HardwareUpdate};
//! use stage2::{Attributes, Config, Ipa, IpaRange, LeafSize, Permissions, PhysAddr, Vmid};
//! use stage2_oracle::{Checked, Model, Setup};
//!
//! # fn main() -> Result<(), stage2::Error> {
//! let features = Features::MINIMAL.with_pa_bits(40).with_bbm(BbmLevel::Level2).with_tlbi_range(true).with_lse(true);
//! let model = Model::new(Setup::new(features.bbm));
//! let mut table = Checked::new(&model, Config::new(Vmid::new(1)?, features))?;
//!
//! let ram = IpaRange::from_size(Ipa(0x4000_0000), 1 << 30)?;
//! table.map(ram, PhysAddr(0x8000_0000), Attributes::RAM)?;
//! table.protect(IpaRange::from_size(Ipa(0x4020_1000), 0x1000)?, Permissions::READ)?;
//! table.collapse(ram)?;
//!
//! // At BBM level 2 nothing mapped was ever invalid, and nobody may hold anything that is not in the table any more.
//! model.assert_clean();
//! # Ok(())
//! # }
//! ```
//!
//! [`schedule`] runs several engine threads in every order, [`Trace`] and [`Model::replay`] judge events without an engine,
//! and [`record`] reads them from a machine's log.

mod asked;
mod busy;
mod change;
pub mod checked;
pub mod checked_logs;
mod dirty;
pub mod event;
mod guest;
mod history;
mod inspect;
mod invalidate;
mod judge;
mod late;
mod log;
mod memory;
pub mod model;
pub mod mutant;
mod operation;
mod platform;
mod reach;
pub mod record;
pub mod reference;
mod running;
pub mod schedule;
pub mod setup;
pub mod shape;
mod span;
mod stage1;
mod state;
mod tlb;
pub mod trace;
mod translation;
mod turn;
pub mod verdict;

pub use checked::{Checked, CheckedBatch};
pub use event::{Access, Action, Event, Form, Invalidation, Operation, OperationKind};
pub use model::{Mapping, Model};
pub use reference::Reference;
pub use setup::{Setup, Stats};
pub use shape::Shape;
pub use trace::Trace;
pub use verdict::{Checks, Verdict, Violation};
