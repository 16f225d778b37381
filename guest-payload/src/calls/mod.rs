//! What the payload asks the hypervisor for.

pub mod hypercall;
pub mod services;
