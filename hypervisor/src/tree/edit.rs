//! Device trees that can be changed: for tests, and for tools that try trees which no boot loader has completed.

use crate::tree::{Node, Tree};
use crate::tree_check::{CheckedTree, TreeError};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use vm_fdt::FdtWriter;

/// A node and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its name with the unit address.
    pub name: String,
    /// Its properties, in their order.
    pub properties: Vec<(String, Vec<u8>)>,
    /// What is below it.
    pub children: Vec<Branch>,
}

impl Branch {
    /// A node with nothing in it.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_string(), properties: Vec::new(), children: Vec::new() }
    }

    /// Takes a tree apart.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, TreeError> {
        CheckedTree::new(bytes).map(|tree| Self::of(&tree))
    }

    /// Takes a tree apart that is known to be sound.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub fn parse(bytes: &[u8]) -> Self {
        Self::read(bytes).unwrap()
    }

    /// Takes a checked tree apart.
    pub fn of(tree: &CheckedTree) -> Self {
        fn copy(node: Node<'_, '_>) -> Branch {
            let properties = node.properties().map(|(name, value)| (name.to_string(), value.to_vec()));
            Branch {
                name: node.name().to_string(),
                properties: properties.collect(),
                children: node.children().map(copy).collect(),
            }
        }
        copy(Tree::open(tree).root().unwrap())
    }

    /// The node at `path` below this one, `soc/uart@0`; the empty path is this one.
    ///
    /// # Panics
    ///
    /// If there is none.
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

    /// Takes a property out, if it is there.
    pub fn unset(&mut self, name: &str) -> &mut Self {
        self.properties.retain(|(other, _)| other != name);
        self
    }

    /// The bytes of a property.
    pub fn property(&self, name: &str) -> Option<&[u8]> {
        self.properties.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..])
    }

    /// The 32-bit cells of a property; a rest shorter than a cell is left out.
    pub fn cells(&self, name: &str) -> Vec<u32> {
        let (cells, _) = self.property(name).unwrap_or_default().as_chunks();
        cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect()
    }

    /// Takes the child with this whole name out.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn take(&mut self, name: &str) -> Self {
        let index = self.children.iter().position(|child| child.name == name);
        self.children.remove(index.unwrap_or_else(|| panic!("no {name}")))
    }

    /// Adds a child, the last one.
    pub fn add(&mut self, child: Self) -> &mut Self {
        self.children.push(child);
        self
    }

    /// Puts the tree together again, without properties whose names are no such by the specification,
    /// and with other names for nodes of which that is true.
    ///
    /// # Panics
    ///
    /// If a name has a NUL in it, or the tree is larger than a tree can be.
    pub fn bytes(&self) -> Vec<u8> {
        fn write(fdt: &mut FdtWriter, node: &Branch) {
            let open = fdt.begin_node(&node.name).or_else(|_| fdt.begin_node(&plain(&node.name))).unwrap();
            for (name, value) in &node.properties {
                match fdt.property(name, value) {
                    // Longer names than the specification has (2.2.4.1): labels and vendors' own.
                    Ok(()) | Err(vm_fdt::Error::InvalidPropertyName) => {}
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            node.children.iter().for_each(|child| write(fdt, child));
            fdt.end_node(open).unwrap();
        }
        let mut fdt = FdtWriter::new().unwrap();
        write(&mut fdt, self);
        fdt.finish().unwrap()
    }

    /// Puts the tree together and checks it.
    ///
    /// # Panics
    ///
    /// As for [`Branch::bytes`].
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

/// A name that the specification allows (2.2.1.1), as like the given one as may be.
fn plain(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, ',' | '.' | '_' | '+' | '-');
    let (base, unit) = name.split_once('@').map_or((name, None), |(base, unit)| (base, Some(unit)));
    let part = |part: &str| part.chars().map(|c| if fits(c) { c } else { '-' }).take(31).collect::<String>();
    let base = part(base.trim_start_matches(|c: char| !c.is_ascii_alphabetic()));
    let base = if base.is_empty() { String::from("node") } else { base };
    unit.map_or_else(|| base.clone(), |unit| base.clone() + "@" + &part(unit))
}
