//! All nodes of a tree, each with the one above it: for what refers to nodes by number or asks those above.

use super::{Bus, Node};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;

/// A node's place in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

struct Entry<'b, 'a> {
    node: Node<'b, 'a>,
    /// The root's is its own.
    parent: usize,
    phandle: Option<u32>,
    /// What the node itself is on.
    bus: Bus,
    /// It and all above it are enabled.
    enabled: bool,
    /// It can be a device.
    device: bool,
}

/// The nodes in the tree's order, the root first.
pub struct Index<'b, 'a> {
    entries: Vec<Entry<'b, 'a>>,
    /// Entries of nexus nodes' maps that may still be looked at: a tree must not make EL2 look for hours.
    pub(super) map_entries: Cell<u32>,
}

/// Enough for every interrupt of a large board to go through the largest map that was seen (69 entries), and more.
const MAP_ENTRIES: u32 = 1 << 18;

impl<'b, 'a> Index<'b, 'a> {
    /// Goes through all nodes once. A checked tree has not so many that the index takes more than a part of the heap.
    pub fn new(root: Node<'b, 'a>) -> Self {
        let mut index = Self { entries: Vec::new(), map_entries: Cell::new(MAP_ENTRIES) };
        let bus = Bus::of_root(root);
        index.entries.push(Entry {
            node: root,
            parent: 0,
            phandle: None,
            bus: bus.clone(),
            enabled: true,
            device: false,
        });
        for node in root.children() {
            // What has other meaning: memory that is there, and these.
            let other = matches!(node.base_name(), "cpus" | "chosen" | "aliases" | "reserved-memory")
                || node.string("device_type") == Some("memory") && node.is_enabled();
            index.add(node, 0, &bus, true, !other);
        }
        index
    }

    /// Recursion ends where the checked tree does, which is not deep.
    fn add(&mut self, node: Node<'b, 'a>, parent: usize, bus: &Bus, enabled: bool, device: bool) {
        let own = self.entries.len();
        let enabled = enabled && node.is_enabled();
        self.entries.push(Entry { node, parent, phandle: node.phandle(), bus: bus.clone(), enabled, device });
        let mut below = None;
        for child in node.children() {
            let below = below.get_or_insert_with(|| bus.below(node));
            self.add(child, own, &below.clone(), enabled, device);
        }
    }

    /// All places, in the tree's order.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.entries.len()).map(Place)
    }

    /// The places of nodes that can be devices, disabled ones included: all but `/cpus`, `/chosen`, `/aliases`,
    /// `/reserved-memory`, memory that is there, and what is below these.
    pub fn devices(&self) -> impl Iterator<Item = Place> + '_ {
        self.places().filter(|place| self.entries[place.0].device)
    }

    /// [`Index::devices`] that are enabled, as all above them are.
    pub fn enabled_devices(&self) -> impl Iterator<Item = Place> + '_ {
        self.devices().filter(|&place| self.is_enabled(place))
    }

    /// Whether the node is one of [`Index::devices`].
    pub fn is_device(&self, place: Place) -> bool {
        self.entries[place.0].device
    }

    /// Whether the node and all above it are enabled.
    pub fn is_enabled(&self, place: Place) -> bool {
        self.entries[place.0].enabled
    }

    /// The bus that the node is on.
    pub fn bus(&self, place: Place) -> &Bus {
        &self.entries[place.0].bus
    }

    /// The number of nodes.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The root node.
    pub fn root(&self) -> Node<'b, 'a> {
        self.entries[0].node
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

    /// The node with this path, or with this alias.
    pub fn named(&self, name: &str) -> Option<Place> {
        let root = self.root();
        let path = match name.strip_prefix('/') {
            Some(_) => name,
            None => root.child("aliases")?.string(name)?,
        };
        self.places().find(|&place| self.path(place) == path)
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
