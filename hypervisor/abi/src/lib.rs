//! Hypercall numbers and types that the hypervisor and its guests share.
#![no_std]
