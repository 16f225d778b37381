//! The engine as its user sees it, on a host platform.

mod dirty;
mod errata;
mod faults;
mod granules;
mod host;
mod operations;
mod races;
mod shortcuts;
