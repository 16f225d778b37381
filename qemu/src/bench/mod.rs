//! Exact benchmarks under icount: what is measured, what it may cost, and what it costs in KVM.
//!
//! The numbers are instructions, of all exception levels; they say nothing about time.

pub mod bars;
pub mod check;
pub mod documents;
pub mod kvm;
pub mod native;
pub mod record;
pub mod scale;
pub mod sizes;
pub mod strategies;
pub mod table;
pub mod tlb;
pub mod vcpus;

/// An operation that is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operation {
    /// Its name in the guest's lines and in files.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    /// The most instructions that it may cost.
    pub must: f64,
    /// What it should cost.
    pub aim: f64,
}

const fn operation(name: &'static str, title: &'static str, must: f64, aim: f64) -> Operation {
    Operation { name, title, must, aim }
}

/// All operations, in the order of reports.
pub const OPERATIONS: [Operation; 23] = [
    operation("hypercall", "hypercall round trip (SMCCC_VERSION)", 100.0, 50.0),
    operation("leaf-write-fault", "first write to a protected 4 KiB leaf", 250.0, 140.0),
    operation("block-write-fault", "first write into a protected 2 MiB block: it is split", 1700.0, 1150.0),
    operation("block-next-page-fault", "every other page of that block", 250.0, 140.0),
    operation("eager-split", "eager split to protected pages, per page", 3.0, 1.9),
    operation("protect-leaves", "write-protect 4 KiB leaves, per page", 4.0, 2.5),
    operation("protect-32-blocks", "write-protect 32 blocks of 2 MiB", 600.0, 300.0),
    operation("harvest-all-dirty", "harvest, all dirty, and protect again, per page", 4.0, 2.4),
    operation("harvest-none", "harvest, 262 144 pages, none dirty", 300.0, 60.0),
    operation("harvest-one", "harvest, one page of 16 384 dirty", 300.0, 140.0),
    operation("clear-64", "clear 64 pages", 500.0, 250.0),
    operation("stop", "stop tracking, without collapse", 500.0, 200.0),
    operation("start-log-blocks", "start a log of 1 GiB in blocks of 2 MiB", 9400.0, 9220.0),
    operation("start-log-gib", "start a log of 1 GiB in one block", 6144.0, 6030.0),
    operation("stop-and-collapse", "stop tracking 32 blocks, all pages written, and collapse", 114970.0, 112720.0),
    operation("unmap-gib", "unmap 1 GiB in 512 blocks of 2 MiB", 54040.0, 52990.0),
    operation("map-gib", "map 1 GiB in 512 blocks of 2 MiB", 87090.0, 85390.0),
    operation("unmapped-fetch", "a fetch from unmapped memory, to the guest's handler of the abort", 353.0, 347.0),
    operation("cpu-on", "PSCI CPU_ON, to the first instruction of the CPU", 4810.0, 4630.0),
    operation("disk-read", "a mediated disk's 4 KiB read: a notification and an interrupt", 1500.0, 1000.0),
    operation("disk-read-mib", "a MiB read from such a disk: 16 requests of 16 pages, 48 exits", 66840.0, 48000.0),
    operation("disk-write-mib", "a MiB written to it, in the same way", 47000.0, 32000.0),
    operation("collapse-512", "collapse 512 pages to a 2 MiB block", 2600.0, 1500.0),
];
