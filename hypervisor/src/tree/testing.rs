//! Device trees for tests: QEMU's own, taken apart so that a test can change one thing.

use crate::tree::{Node, Tree};
use crate::tree_check::CheckedTree;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use vm_fdt::FdtWriter;

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

/// A node and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestNode {
    pub name: String,
    pub properties: Vec<(String, Vec<u8>)>,
    pub children: Vec<TestNode>,
}

impl TestNode {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_string(), properties: Vec::new(), children: Vec::new() }
    }

    /// Takes a tree apart.
    pub fn parse(bytes: &[u8]) -> Self {
        Self::of(&CheckedTree::new(bytes).unwrap())
    }

    /// Takes a checked tree apart.
    pub fn of(tree: &CheckedTree) -> Self {
        fn copy(node: Node<'_, '_>) -> TestNode {
            let properties = node.properties().map(|(name, value)| (name.to_string(), value.to_vec()));
            TestNode {
                name: node.name().to_string(),
                properties: properties.collect(),
                children: node.children().map(copy).collect(),
            }
        }
        copy(Tree::open(tree).root().unwrap())
    }

    /// The node at `path` below this one, `soc/uart@0`; the empty path is this one.
    pub fn at(&mut self, path: &str) -> &mut Self {
        path.split('/').filter(|part| !part.is_empty()).fold(self, |node, part| {
            let names: Vec<String> = node.children.iter().map(|child| child.name.clone()).collect();
            let index = names.iter().position(|name| name == part);
            &mut node.children[index.unwrap_or_else(|| panic!("no {part} among {names:?}"))]
        })
    }

    /// Adds or replaces a property.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) -> &mut Self {
        self.unset(name).properties.push((name.to_string(), value.into()));
        self
    }

    /// Adds or replaces a property made of cells.
    pub fn set_cells(&mut self, name: &str, cells: &[u32]) -> &mut Self {
        self.set(name, cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<u8>>())
    }

    pub fn unset(&mut self, name: &str) -> &mut Self {
        self.properties.retain(|(other, _)| other != name);
        self
    }

    pub fn property(&self, name: &str) -> Option<&[u8]> {
        self.properties.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..])
    }

    pub fn cells(&self, name: &str) -> Vec<u32> {
        let value = self.property(name).unwrap_or_default();
        value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    /// Takes the child with this whole name out.
    pub fn take(&mut self, name: &str) -> Self {
        let index = self.children.iter().position(|child| child.name == name);
        self.children.remove(index.unwrap_or_else(|| panic!("no {name}")))
    }

    pub fn add(&mut self, child: Self) -> &mut Self {
        self.children.push(child);
        self
    }

    /// Puts the tree together again.
    pub fn bytes(&self) -> Vec<u8> {
        fn write(fdt: &mut FdtWriter, node: &TestNode) {
            let open = fdt.begin_node(&node.name).unwrap();
            node.properties.iter().for_each(|(name, value)| fdt.property(name, value).unwrap());
            node.children.iter().for_each(|child| write(fdt, child));
            fdt.end_node(open).unwrap();
        }
        let mut fdt = FdtWriter::new().unwrap();
        write(&mut fdt, self);
        fdt.finish().unwrap()
    }

    /// Puts the tree together and checks it.
    pub fn checked(&self) -> CheckedTree {
        CheckedTree::new(&self.bytes()).unwrap()
    }

    /// The paths of this node and all below it.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::from([self.name.clone()]);
        let below = self.children.iter().flat_map(Self::paths);
        paths.extend(below.map(|path| alloc::format!("{}/{path}", self.name)));
        paths
    }
}
