//! What is mapped, with which permissions, and for how long the table lives.

mod freeze;
mod lifecycle;
mod map;
pub(crate) mod protect;
mod revoke;
mod unmap;
