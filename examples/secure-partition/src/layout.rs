//! Where everything is, on QEMU's `virt`. Partitions see memory at its physical address.

use crate::Partition;
use stage2::{Ipa, IpaRange, PAGE_SIZE};

/// The partitions' program, code and constants only: one copy, which both execute. `partition.ld` links it here.
pub const PROGRAM: IpaRange = range(0x4080_0000, 2 << 20);
/// All of the partitions' memory.
pub const MEMORY: IpaRange = range(0x40a0_0000, 8 << 20);
/// A device's registers (the PL031 clock's), which the first partition may use.
pub const DEVICE: IpaRange = range(0x0901_0000, PAGE_SIZE);
/// Bits of the partitions' IPA spaces.
pub const IPA_BITS: u8 = 36;
/// CPUs: each runs one context of each partition, by turns.
pub const CPUS: usize = 2;

/// Bytes of each context's stack, at the start of the partition's memory.
pub const STACK: u64 = 64 << 10;

const fn range(start: u64, bytes: u64) -> IpaRange {
    match IpaRange::from_size(Ipa(start), bytes) {
        Ok(range) => range,
        Err(_) => panic!("not a range of whole pages"),
    }
}

/// What a partition owns at first: two blocks of 2 MiB.
#[must_use]
pub const fn memory(partition: Partition) -> IpaRange {
    let bytes = MEMORY.bytes() / 2;
    range(MEMORY.start().0 + partition.index() as u64 * bytes, bytes)
}

/// The end of the stack of a partition's context on `cpu`.
#[must_use]
pub const fn stack_top(partition: Partition, cpu: usize) -> Ipa {
    memory(partition).start().offset((cpu as u64 + 1) * STACK)
}

/// The page in which a partition keeps what its contexts share.
#[must_use]
pub const fn shared(partition: Partition) -> Ipa {
    stack_top(partition, CPUS - 1)
}

/// The page in which a partition writes descriptors for the SPM.
#[must_use]
pub const fn tx_buffer(partition: Partition) -> Ipa {
    shared(partition).offset(PAGE_SIZE)
}

/// The page in which the SPM writes descriptors for a partition.
#[must_use]
pub const fn rx_buffer(partition: Partition) -> Ipa {
    shared(partition).offset(2 * PAGE_SIZE)
}

/// The rest: what a partition can do without.
#[must_use]
pub fn spare(partition: Partition) -> IpaRange {
    let start = rx_buffer(partition).offset(PAGE_SIZE);
    range(start.0, memory(partition).end().0 - start.0)
}
