//! What runs at EL2: everything that needs the machine's own instructions.
//!
//! What can be decided without them lies in the library `hypervisor`, where a host tests it.

mod abort;
mod boot;
mod console;
mod control;
mod cpu;
mod crash;
mod efi;
mod events;
mod exceptions;
mod frames;
mod gic;
mod guest;
mod guest_memory;
mod heap;
mod hypercall;
mod inject;
mod manager;
mod memory;
mod power;
mod psci;
mod registers;
mod report;
mod secondary;
mod services;
mod symbols;
mod system_register;
mod table_lock;
mod test_services;
