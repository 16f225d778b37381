//! All nodes of a tree, each with the one above it: for what refers to nodes by number or asks those above.

use super::Node;
use alloc::string::String;
use alloc::vec::Vec;

/// A node's place in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

struct Entry<'b, 'a> {
    node: Node<'b, 'a>,
    /// The root's is its own.
    parent: usize,
    phandle: Option<u32>,
}

/// The nodes in the tree's order, the root first.
pub struct Index<'b, 'a> {
    entries: Vec<Entry<'b, 'a>>,
}

impl<'b, 'a> Index<'b, 'a> {
    /// Goes through all nodes once.
    pub fn new(root: Node<'b, 'a>) -> Self {
        let mut index = Self { entries: Vec::new() };
        index.add(root, 0);
        index
    }

    /// Recursion ends where the checked tree does, which is not deep.
    fn add(&mut self, node: Node<'b, 'a>, parent: usize) {
        let own = self.entries.len();
        let phandle = node.phandle();
        self.entries.push(Entry { node, parent, phandle });
        for child in node.children() {
            self.add(child, own);
        }
    }

    /// All places, in the tree's order.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.entries.len()).map(Place)
    }

    /// The number of nodes.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The node at `place`.
    pub fn node(&self, place: Place) -> Node<'b, 'a> {
        self.entries[place.0].node
    }

    /// The node above, but for the root.
    pub fn parent(&self, place: Place) -> Option<Place> {
        (place.0 != 0).then(|| Place(self.entries[place.0].parent))
    }

    /// The first node with this phandle, the old `linux,phandle` included.
    pub fn with_phandle(&self, phandle: u32) -> Option<Place> {
        self.entries.iter().position(|entry| entry.phandle == Some(phandle)).map(Place)
    }

    /// The path of a node: `/soc/serial@9000000`.
    pub fn path(&self, place: Place) -> String {
        let mut names = Vec::new();
        let mut at = place;
        while let Some(parent) = self.parent(at) {
            names.push(self.node(at).name());
            at = parent;
        }
        if names.is_empty() {
            return "/".into();
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + name)
    }
}
