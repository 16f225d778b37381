//! What `cargo hv bench --tlb` can be told.

use clap::Args;
use tlb_model::Sizes;

/// The model of TLBs.
#[derive(Debug, Clone, Args)]
pub struct Tlb {
    /// Count a Linux's TLB misses and walks by a model instead, with stage 2 in pages, in blocks and under a dirty log: tables,
    /// and a picture in --out (QEMU 10 or newer; it is fetched)
    #[arg(long = "tlb", group = "picture", conflicts_with_all = ["kvm", "native"])]
    pub wanted: bool,
    /// With --tlb: these shapes of stage 2 alone, as pages,blocks; what is stored of others stays [default: all]
    #[arg(long = "tlb-shapes", value_name = "NAME,...", requires = "wanted", value_delimiter = ',')]
    pub shapes: Vec<String>,
    /// With --tlb: entries and ways [default: l1=48,l2=1280x5,stage1=64x4,stage2=64x4]
    #[arg(long = "tlb-sizes", value_name = "SIZES", requires = "wanted")]
    pub sizes: Option<Sizes>,
}
