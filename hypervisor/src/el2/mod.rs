//! What runs at EL2: everything that needs the machine's own instructions.
//!
//! What can be decided without them lies in the library `hypervisor`, where a host tests it. The folders are floors, the
//! highest first: each imports only what stands below it.

mod boot;
mod exits;
mod manager;
mod mediation;
mod saving;
// The end of EL2 itself.
mod crash;
mod guest_memory;
// What every floor stands on.
mod base;
