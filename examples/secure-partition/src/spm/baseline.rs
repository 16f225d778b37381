//! What must be so again when all is done.

use crate::platform::{POOL, Platform};
use secure_partition::Partition;
use secure_partition::tables::Tables;
use stage2::Census;

/// What must be so again when all memory is back where it was.
#[derive(Debug)]
pub struct Baseline {
    /// Frames that are free.
    pub frames: usize,
    /// Each partition's leaves and tables.
    pub census: [Census; 2],
}

impl Baseline {
    /// As it is now.
    pub fn of(tables: &Tables<Platform>) -> Self {
        Self { frames: POOL.available(), census: Partition::ALL.map(|partition| tables.of(partition).read().census()) }
    }
}
