//! The partitions' stage-2 tables: the one place that calls the engine.
//!
//! Each table maps all of the partitions' memory from the start, as 2 MiB blocks: a partition's own with all permissions,
//! the other's with none. To move memory is to change permissions in both, so every call but the collapse takes `&self`,
//! runs while the owner uses the block, and breaks nothing where the CPUs have FEAT_BBM level 2.

use crate::Partition;
use crate::layout;
use spin::RwLock;
use stage2::{
    Abort, Attributes, Config, Error, FaultHistory, Features, Ipa, IpaRange, LeafSize, Maintenance, Outcome,
    Permissions, PhysAddr, Stage2, TableMemory, Vmid,
};

/// What is collapsed at a time.
const BLOCK: u64 = LeafSize::Block2M.bytes();

/// Both tables, each behind a lock that its partition's faults and the other CPU's calls share.
#[derive(Debug)]
pub struct Tables<P> {
    tables: [RwLock<Stage2<P>>; 2],
}

impl<P: TableMemory + Maintenance> Tables<P> {
    /// The tables as they are at first.
    ///
    /// # Errors
    ///
    /// Those of the engine: out of frames, VMIDs that the CPU does not have.
    pub fn new(platforms: [P; 2], vmids: [Vmid; 2], features: Features) -> Result<Self, Error> {
        let [first, second] = platforms;
        let first = new_table(Partition::First, first, vmids[0], features)?;
        let second = new_table(Partition::Second, second, vmids[1], features)?;
        Ok(Self { tables: [RwLock::new(first), RwLock::new(second)] })
    }

    /// A partition's table: to read it, to share it.
    #[must_use]
    pub fn of(&self, partition: Partition) -> &RwLock<Stage2<P>> {
        let [first, second] = &self.tables;
        match partition {
            Partition::First => first,
            Partition::Second => second,
        }
    }

    /// [`Machine::set_access`](crate::relayer::Machine::set_access).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]: the permissions are what they were.
    #[inline(never)]
    pub fn set_access(
        &self,
        partition: Partition,
        ranges: &[IpaRange],
        before: Permissions,
        after: Permissions,
    ) -> Result<(), Error> {
        let table = self.of(partition).read();
        // One invalidation for all ranges, when the batch ends.
        let mut batch = table.batch();
        let mut done = 0;
        let result = ranges.iter().try_for_each(|&range| {
            batch.protect(range, after)?;
            done += 1;
            Ok(())
        });
        if result.is_err() {
            // Needs no frame: the ranges were split off just now, and nothing collapses under the lock.
            ranges.iter().take(done).try_for_each(|&range| batch.protect(range, before))?;
        }
        result
    }

    /// [`Machine::collapse`](crate::relayer::Machine::collapse).
    #[inline(never)]
    pub fn collapse(&self, partition: Partition, ranges: &[IpaRange]) {
        let mut table = self.of(partition).write();
        for range in ranges {
            let end = range.end().offset(BLOCK - 1).align_down(BLOCK);
            if let Ok(blocks) = IpaRange::new(range.start().align_down(BLOCK), end) {
                // Fails outside of the IPA space only, where no transaction is.
                let _ = table.collapse(blocks);
            }
        }
    }

    /// Answers a stage-2 abort of `partition`.
    #[inline(never)]
    pub fn fault(&self, partition: Partition, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        self.of(partition).read().fault(abort, history)
    }
}

#[inline(never)]
fn new_table<P: TableMemory + Maintenance>(
    partition: Partition,
    platform: P,
    vmid: Vmid,
    features: Features,
) -> Result<Stage2<P>, Error> {
    let config = Config::new(vmid, features)
        .with_ipa_bits(layout::IPA_BITS)
        .with_largest(LeafSize::Block2M)
        .with_contiguous(true);
    let mut table = Stage2::new(platform, config)?;
    let program = Attributes { permissions: Permissions::READ_EXECUTE, ..Attributes::RAM };
    let other = Attributes { permissions: Permissions::NONE, ..Attributes::RAM };
    map(&mut table, layout::PROGRAM, program)?;
    map(&mut table, layout::memory(partition), Attributes::RAM)?;
    map(&mut table, layout::memory(partition.other()), other)?;
    if partition == Partition::First {
        map(&mut table, layout::DEVICE, Attributes::DEVICE)?;
    }
    Ok(table)
}

#[inline(never)]
fn map<P: TableMemory + Maintenance>(
    table: &mut Stage2<P>,
    range: IpaRange,
    attributes: Attributes,
) -> Result<(), Error> {
    table.map(range, physical(range.start()), attributes)
}

/// Partitions see memory where it is.
const fn physical(ipa: Ipa) -> PhysAddr {
    PhysAddr(ipa.0)
}
