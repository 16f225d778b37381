//! Nodes and properties of a checked device tree, read with the `fdt` crate.
//!
//! Only those parts of `fdt` are used that cannot panic on a [`CheckedTree`]: finding the root, going through children
//! and properties. Cells and strings are decoded here.
//!
//! All nodes and properties are listed once, when a tree is opened: `fdt` finds a property, or the next node, by reading all
//! that comes before it, names and all, and a boot asks for thousands.

#[cfg(any(test, feature = "edit"))]
pub mod edit;
pub mod index;
pub mod interrupts;
#[cfg(test)]
pub(crate) mod testing;

use crate::range::PhysRange;
use crate::tree_check::CheckedTree;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use fdt::Fdt;
use fdt::node::FdtNode;

/// A checked tree, opened for reading.
pub struct Tree<'a> {
    fdt: Option<Fdt<'a>>,
    /// In the tree's order, the root first.
    nodes: Vec<Listed<'a>>,
    /// Of all nodes, in the tree's order.
    properties: Vec<(&'a str, &'a [u8])>,
}

/// A node in the list.
struct Listed<'a> {
    name: &'a str,
    /// Its properties' places.
    properties: Range<u32>,
    /// The place behind all that is below it.
    end: u32,
}

impl<'a> Tree<'a> {
    /// Opens `tree`.
    pub fn open(tree: &'a CheckedTree) -> Self {
        // A checked tree has a header that `fdt` accepts; were it otherwise, the tree would read as an empty one.
        let fdt = Fdt::new(tree.bytes()).ok();
        let mut this = Self { fdt: None, nodes: Vec::new(), properties: Vec::new() };
        if let Some(root) = fdt.as_ref().and_then(|fdt| fdt.find_node("/")) {
            this.list(root);
        }
        Self { fdt, ..this }
    }

    /// Recursion ends where the checked tree does, which is not deep.
    fn list(&mut self, raw: FdtNode<'_, 'a>) {
        let (own, first) = (self.nodes.len(), self.properties.len() as u32);
        self.properties.extend(raw.properties().map(|property| (property.name, property.value)));
        let properties = first..self.properties.len() as u32;
        self.nodes.push(Listed { name: raw.name, properties, end: 0 });
        raw.children().for_each(|child| self.list(child));
        let end = self.nodes.len() as u32;
        if let Some(node) = self.nodes.get_mut(own) {
            node.end = end;
        }
    }

    /// The root node.
    pub fn root(&self) -> Option<Node<'_, 'a>> {
        self.node(0)
    }

    fn node(&self, place: u32) -> Option<Node<'_, 'a>> {
        self.nodes.get(place as usize).map(|listed| Node { tree: self, listed, place })
    }

    /// The entries of the memory reservation block.
    pub fn memory_reservations(&self) -> impl Iterator<Item = Option<PhysRange>> {
        let reservations = self.fdt.iter().flat_map(Fdt::memory_reservations);
        reservations.map(|entry| PhysRange::with_size(entry.address() as u64, entry.size() as u64))
    }
}

/// One node.
#[derive(Clone, Copy)]
pub struct Node<'b, 'a> {
    tree: &'b Tree<'a>,
    listed: &'b Listed<'a>,
    place: u32,
}

impl<'b, 'a> Node<'b, 'a> {
    /// Its name with the unit address, `pl011@9000000`.
    pub fn name(self) -> &'a str {
        self.listed.name
    }

    /// Its name without the unit address, `pl011`.
    pub fn base_name(self) -> &'a str {
        self.name().split('@').next().unwrap_or_default()
    }

    /// Its children.
    pub fn children(self) -> impl Iterator<Item = Node<'b, 'a>> {
        let below = move |place| self.tree.node(place).filter(|node| node.place < self.listed.end);
        core::iter::successors(below(self.place + 1), move |child| below(child.listed.end))
    }

    /// The child of this base name.
    pub fn child(self, base_name: &str) -> Option<Node<'b, 'a>> {
        self.children().find(|child| child.base_name() == base_name)
    }

    /// Its properties, in the tree's order.
    pub fn properties(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let Range { start, end } = self.listed.properties;
        self.tree.properties.get(start as usize..end as usize).unwrap_or_default().iter().copied()
    }

    /// The bytes of a property.
    pub fn property(self, name: &str) -> Option<&'a [u8]> {
        self.properties().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// A property that is one string; text behind the first NUL is left out.
    pub fn string(self, name: &str) -> Option<&'a str> {
        self.strings(name).next()
    }

    /// A property that is a list of strings; ends at the first that is no text.
    pub fn strings(self, name: &str) -> impl Iterator<Item = &'a str> {
        let value = self.property(name).unwrap_or_default();
        let value = value.strip_suffix(&[0]).unwrap_or(value);
        let parts = (!value.is_empty()).then(|| value.split(|&byte| byte == 0));
        parts.into_iter().flatten().map_while(|part| core::str::from_utf8(part).ok())
    }

    /// The 32-bit cells of a property; a rest shorter than a cell is left out.
    pub fn cells(self, name: &str) -> impl Iterator<Item = u32> + use<'a> {
        let (cells, _) = self.property(name).unwrap_or_default().as_chunks();
        cells.iter().map(|cell| u32::from_be_bytes(*cell))
    }

    /// A property that is one cell.
    pub fn cell(self, name: &str) -> Option<u32> {
        self.cells(name).next()
    }

    /// The number that other nodes name it by, the old `linux,phandle` included.
    pub fn phandle(self) -> Option<u32> {
        self.cell("phandle").or_else(|| self.cell("linux,phandle"))
    }

    /// Whether its `compatible` has this string.
    pub fn is_compatible(self, with: &str) -> bool {
        self.strings("compatible").any(|name| name == with)
    }

    /// Whether the non-secure world may use it: it has no `status`, or one of `okay` and `ok`.
    pub fn is_enabled(self) -> bool {
        self.property("status").is_none() || matches!(self.string("status"), Some("okay" | "ok"))
    }
}

/// How a bus's children write addresses, and where those addresses lie for a CPU.
#[derive(Clone)]
pub struct Bus {
    address_cells: usize,
    size_cells: usize,
    windows: Windows,
}

/// From a bus address to a CPU's.
#[derive(Clone)]
enum Windows {
    /// They are the same.
    Identity,
    /// Through `ranges`.
    Mapped(Rc<[Window]>),
    /// Not CPU addresses (an I²C bus, a CPU's number).
    None,
}

#[derive(Clone, Copy)]
struct Window {
    bus: PhysRange,
    cpu: u64,
}

impl Bus {
    /// The bus that the root's children are on.
    pub fn of_root(root: Node<'_, '_>) -> Self {
        let (address_cells, size_cells) = cell_counts(root, (2, 1));
        Self { address_cells, size_cells, windows: Windows::Identity }
    }

    /// The bus that the children of `node` are on, when `node` itself is on `self`.
    pub fn below(&self, node: Node<'_, '_>) -> Self {
        // Defaults: Devicetree Specification 2.3.5.
        let (address_cells, size_cells) = cell_counts(node, (2, 1));
        let windows = match (&self.windows, node.property("ranges")) {
            (Windows::None, _) | (_, None) => Windows::None,
            (outer, Some([])) => outer.clone(),
            (_, Some(_)) => {
                let width = address_cells + self.address_cells + size_cells;
                let cells: Vec<u32> = node.cells("ranges").collect();
                // A child without an address, or a window without a size, leads nowhere.
                let cells = if address_cells == 0 || size_cells == 0 { &[][..] } else { &cells[..] };
                let windows = cells.chunks_exact(width.max(1)).filter_map(|entry| {
                    let (bus, rest) = entry.split_at_checked(address_cells)?;
                    let (cpu, size) = rest.split_at_checked(self.address_cells)?;
                    let cpu = self.to_cpu(PhysRange::with_size(number(cpu)?, number(size)?)?)?.start();
                    Some(Window { bus: PhysRange::with_size(number(bus)?, number(size)?)?, cpu })
                });
                Windows::Mapped(windows.collect())
            }
        };
        Self { address_cells, size_cells, windows }
    }

    /// The same bus for a node that may state its own cell counts but is no bus of its own: `/chosen`.
    pub fn with_counts_of(&self, node: Node<'_, '_>) -> Self {
        let (address_cells, size_cells) = cell_counts(node, (self.address_cells, self.size_cells));
        Self { address_cells, size_cells, windows: self.windows.clone() }
    }

    /// The ranges in the `reg` of `node`, as a CPU sees them. Nothing when `reg` is missing or is not a whole number
    /// of entries, or when an entry wraps round, or is on a bus that a CPU does not see.
    pub fn reg(&self, node: Node<'_, '_>) -> Option<Vec<PhysRange>> {
        let width = self.address_cells + self.size_cells;
        let bytes = node.property("reg")?;
        if width == 0 || bytes.is_empty() || !bytes.len().is_multiple_of(width * 4) {
            return None;
        }
        let cells: Vec<u32> = node.cells("reg").collect();
        cells.chunks_exact(width).map(|entry| self.entry(entry)).collect()
    }

    /// The ranges in the `reg` of `node` that a CPU sees, in their order; those that [`Bus::reg`] would fail for are empty.
    pub fn readable_reg(&self, node: Node<'_, '_>) -> impl Iterator<Item = PhysRange> + use<> {
        let cells: Vec<u32> = node.cells("reg").collect();
        let entries = cells.chunks_exact((self.address_cells + self.size_cells).max(1)).map(|entry| self.entry(entry));
        let ranges: Vec<PhysRange> = entries.map(Option::unwrap_or_default).collect();
        ranges.into_iter()
    }

    /// One entry of a `reg`.
    fn entry(&self, cells: &[u32]) -> Option<PhysRange> {
        let (address, size) = cells.split_at_checked(self.address_cells)?;
        self.to_cpu(PhysRange::with_size(number(address)?, number(size)?)?)
    }

    /// Where a range of bus addresses lies for a CPU.
    fn to_cpu(&self, range: PhysRange) -> Option<PhysRange> {
        match &self.windows {
            Windows::Identity => Some(range),
            Windows::None => None,
            Windows::Mapped(windows) => {
                let window = windows.iter().find(|window| window.bus.contains_range(range))?;
                PhysRange::with_size(window.cpu.checked_add(range.start() - window.bus.start())?, range.size())
            }
        }
    }
}

/// `#address-cells` and `#size-cells` of `node`; counts above 4, which nothing has, become 4.
pub fn cell_counts(node: Node<'_, '_>, default: (usize, usize)) -> (usize, usize) {
    let count = |name, default| node.cell(name).map_or(default, |count| count.min(4) as usize);
    (count("#address-cells", default.0), count("#size-cells", default.1))
}

/// A number of zero to more cells, when 64 bits hold it.
pub fn number(cells: &[u32]) -> Option<u64> {
    let (high, low) = cells.split_at(cells.len().saturating_sub(2));
    high.iter().all(|&cell| cell == 0).then(|| low.iter().fold(0, |value, &cell| value << 32 | u64::from(cell)))
}
