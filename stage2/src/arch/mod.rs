//! What the Arm ARM fixes: addresses, levels, descriptors, features, errors that name them. It knows no table.

pub mod address;
pub mod descriptor;
mod errata;
pub mod error;
pub mod features;
pub mod geometry;
mod range;
pub mod secure;
pub mod syndrome;
