//! What the guest's table looks like, in a line.

use crate::el2::guest_memory::table_lock::Table;
use core::fmt;
use hypervisor::granule::{FRAMES, Granule, PAGE, of_sizes};
use stage2::{BbmLevel, Census, LeafSize};

/// Of what leaves a table consists, as it is printed.
pub struct Shape {
    census: Census,
    ipa_bits: u8,
    bbm: BbmLevel,
}

impl Shape {
    /// The table's as it is now.
    pub fn of(table: &Table) -> Self {
        Self { census: table.census(), ipa_bits: table.geometry().ipa_bits(), bbm: table.bbm_level() }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { census, ipa_bits, bbm } = self;
        write!(f, "stage 2: {} leaves (", census.leaves.iter().sum::<usize>())?;
        let mut separator = "";
        let sizes = of_sizes(LeafSize::DESCENDING).into_iter().zip(of_sizes(census.leaves));
        // The larger granules have no blocks at level 1.
        for (size, count) in sizes.filter(|(size, _)| FRAMES == 1 || *size != LeafSize::Block1G) {
            write!(f, "{separator}{count} of {}", size.with_granule::<Granule>())?;
            separator = ", ";
        }
        let (bytes, tables) = (census.tables as u64 * PAGE, census.tables);
        write!(
            f,
            "); {bytes} bytes in {tables} tables; {ipa_bits} bits of IPA, sizes change as with BBM level {}",
            *bbm as u8
        )
    }
}
