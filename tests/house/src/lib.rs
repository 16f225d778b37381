//! The house: which way imports run, and how long files and functions are.
//!
//! A crate's modules are *rooms* on *floors*. A room imports only what stands on floors below it; rooms on one floor do not
//! import each other; and no files import each other in a circle. [`floors`] judges this, from the `use` lines and the
//! paths in code that [`imports`] finds, in the modules that [`modules`] finds in [`source`]s. [`length`] judges how long
//! files and functions are.
//!
//! What can't be seen from paths is not judged: a method that is called on a value of another module's type.

pub mod fault;
pub mod floors;
pub mod imports;
pub mod length;
pub mod modules;
pub mod source;
