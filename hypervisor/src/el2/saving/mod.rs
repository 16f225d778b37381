//! The guest's state but for its memory: stopping all of its CPUs with all they have, and going on with it, here or
//! elsewhere.
//!
//! A freeze makes the root invalid, so that no CPU of the guest executes an instruction or stores anything more. A CPU that
//! runs comes to EL2 at once, writes down what it has ([`arrive`]) and waits. One that sleeps (WFI) is woken by an interrupt
//! that the guest has disabled, which is taken back before the guest can see it.

pub mod clock;
mod cpu;
mod devices;
mod error;
pub mod facts;
mod gic;
mod left_out;
pub mod load;
pub mod pages;
mod registers;
pub mod send;
mod start;
mod stop;
pub mod store;
mod vectors;

pub use clock::times_resumed;
pub use error::Error;
pub use start::{apply, enter_if_saved, is_whole, start};
pub use stop::{Stopped, arrive, is_stopping, note_cpu, prepare, stop_all, times_stopped};
