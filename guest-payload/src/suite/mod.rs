//! The suite: the tests by their groups, and the runner.

#[macro_use]
mod group;
mod random;
mod runner;
mod tests;

pub use runner::run;
