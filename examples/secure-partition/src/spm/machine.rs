//! The service's view of this machine: tables, and the partitions' memory, which is mapped here where it is.

use crate::platform::Platform;
use secure_partition::Partition;
use secure_partition::layout::MEMORY;
use secure_partition::relayer::Machine;
use secure_partition::service::World;
use secure_partition::tables::Tables;
use stage2::{Error, Ipa, IpaRange, PAGE_SIZE, Permissions};

const PAGE: usize = PAGE_SIZE as usize;

/// The machine.
#[derive(Debug)]
pub struct Board {
    /// What the partitions may do.
    pub tables: Tables<Platform>,
}

/// The first byte of a page of [`MEMORY`], which all pages that the service names are in.
fn pointer(page: Ipa) -> *mut u8 {
    assert!(MEMORY.contains(page) && page.is_aligned(PAGE_SIZE));
    core::ptr::with_exposed_provenance_mut(page.0 as usize)
}

impl Machine for Board {
    fn set_access(
        &self,
        partition: Partition,
        ranges: &[IpaRange],
        before: Permissions,
        after: Permissions,
    ) -> Result<(), Error> {
        self.tables.set_access(partition, ranges, before, after)
    }

    fn collapse(&self, partition: Partition, ranges: &[IpaRange]) {
        self.tables.collapse(partition, ranges);
    }

    fn zero(&self, range: IpaRange) {
        for n in 0..range.pages() {
            let page = pointer(range.start().offset(n * PAGE_SIZE));
            // SAFETY: the page is the partitions' memory, mapped writable; no Rust object of the SPM's is there.
            unsafe { core::ptr::write_bytes(page, 0, PAGE) };
        }
    }
}

impl World for Board {
    fn read(&self, page: Ipa, into: &mut [u8; PAGE]) {
        let from = pointer(page).cast::<u64>();
        for (n, bytes) in into.chunks_exact_mut(8).enumerate() {
            // SAFETY: inside the page. Volatile: the partition may be writing there, so nothing may be read twice.
            let word = unsafe { from.wrapping_add(n).read_volatile() };
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
    }

    fn write(&self, page: Ipa, bytes: &[u8]) {
        let to = pointer(page);
        for (n, &byte) in bytes.iter().take(PAGE).enumerate() {
            // SAFETY: inside the page. Volatile: the partition may be reading there.
            unsafe { to.wrapping_add(n).write_volatile(byte) };
        }
    }
}
