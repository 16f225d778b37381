//! Device trees for tests: QEMU's own, of which a test changes one thing.

pub use crate::tree::edit::Branch as TestNode;

/// Trees that QEMU made: GIC version, CPUs, bytes of RAM, the tree. `fixtures/make` makes them anew.
pub const MACHINES: [(u32, usize, u64, &[u8]); 12] = [
    (2, 1, 512 << 20, include_bytes!("../../fixtures/gic2-smp1-512M.dtb")),
    (2, 1, 4 << 30, include_bytes!("../../fixtures/gic2-smp1-4G.dtb")),
    (2, 2, 512 << 20, include_bytes!("../../fixtures/gic2-smp2-512M.dtb")),
    (2, 2, 4 << 30, include_bytes!("../../fixtures/gic2-smp2-4G.dtb")),
    (2, 4, 512 << 20, include_bytes!("../../fixtures/gic2-smp4-512M.dtb")),
    (2, 4, 4 << 30, include_bytes!("../../fixtures/gic2-smp4-4G.dtb")),
    (3, 1, 512 << 20, include_bytes!("../../fixtures/gic3-smp1-512M.dtb")),
    (3, 1, 4 << 30, include_bytes!("../../fixtures/gic3-smp1-4G.dtb")),
    (3, 2, 512 << 20, include_bytes!("../../fixtures/gic3-smp2-512M.dtb")),
    (3, 2, 4 << 30, include_bytes!("../../fixtures/gic3-smp2-4G.dtb")),
    (3, 4, 512 << 20, include_bytes!("../../fixtures/gic3-smp4-512M.dtb")),
    (3, 4, 4 << 30, include_bytes!("../../fixtures/gic3-smp4-4G.dtb")),
];

/// GICv3, 4 CPUs, 512 MiB.
pub const GIC3: &[u8] = MACHINES[10].3;
/// GICv2, 4 CPUs, 512 MiB.
pub const GIC2: &[u8] = MACHINES[4].3;
/// The secure world's nodes, 20 CPUs, two memory nodes.
pub const SECURE_NUMA: &[u8] = include_bytes!("../../fixtures/secure-numa.dtb");
