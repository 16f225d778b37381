//! Which interrupt of which controller a node's interrupt is, by the one way that the specification has.
//!
//! Sources: Devicetree Specification, release 0.4, 2.4 (`interrupt-parent`, `interrupts-extended`, nexus nodes and
//! `interrupt-map`); where it leaves something open, what Linux does: a parent without `#interrupt-cells` is passed
//! over, and a node that is both a controller and a nexus is a nexus.

use super::Node;
use super::index::{Index, Place};
use alloc::vec::Vec;
use core::fmt;

/// The most steps from a device to the controller: nothing has more than three, and a tree may go in circles.
const MAX_STEPS: usize = 16;

/// The most interrupts of a node that are looked at: nothing has more that the hypervisor or its guest would use.
const MAX_INTERRUPTS: usize = 64;

/// One interrupt, as the controller that it arrives at writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specifier {
    /// The controller.
    pub controller: Place,
    /// So many cells as the controller's `#interrupt-cells` says.
    pub cells: Vec<u32>,
}

/// Why an interrupt leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoInterrupt {
    /// No node above it, and none that those name, is an interrupt controller.
    NoParent,
    /// A phandle that no node has.
    NoSuchNode(u32),
    /// A list that ends in the middle of an interrupt.
    CutShort,
    /// A nexus node whose `interrupt-map` has no entry for it.
    NotInMap,
    /// A way that never ends at a controller.
    Endless,
}

impl fmt::Display for NoInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoParent => f.write_str("no interrupt controller is above it"),
            Self::NoSuchNode(phandle) => write!(f, "no node has the phandle {phandle:#x} of its controller"),
            Self::CutShort => f.write_str("its list of interrupts is cut short"),
            Self::NotInMap => f.write_str("the interrupt-map that it goes through has no entry for it"),
            Self::Endless => f.write_str("its interrupt parents go in a circle, or through too large maps"),
        }
    }
}

impl Index<'_, '_> {
    /// The interrupts of the node at `place`, in its order. Ends with the first that leads nowhere, since where the next
    /// one begins may not be known.
    pub fn interrupts(&self, place: Place) -> Vec<Result<Specifier, NoInterrupt>> {
        let node = self.node(place);
        let mut found = Vec::new();
        if node.property("interrupts-extended").is_some() {
            let cells: Vec<u32> = node.cells("interrupts-extended").collect();
            let mut rest = &cells[..];
            while let Some((&phandle, behind)) = rest.split_first()
                && found.len() < MAX_INTERRUPTS
                && found.last().is_none_or(Result::is_ok)
            {
                // An entry of 0 stands for an interrupt that is not connected.
                if phandle == 0 {
                    rest = behind;
                    continue;
                }
                let first = self.with_phandle(phandle).ok_or(NoInterrupt::NoSuchNode(phandle)).and_then(|parent| {
                    let count = interrupt_cells(self.node(parent)).ok_or(NoInterrupt::NoParent)?;
                    let (own, behind) = behind.split_at_checked(count).ok_or(NoInterrupt::CutShort)?;
                    Ok((parent, own, behind))
                });
                match first {
                    Ok((parent, own, behind)) => {
                        found.push(self.follow(node, parent, own));
                        rest = behind;
                    }
                    Err(why) => {
                        found.push(Err(why));
                        break;
                    }
                }
            }
            return found;
        }
        let cells: Vec<u32> = node.cells("interrupts").collect();
        if cells.is_empty() {
            return found;
        }
        let parent = match self.interrupt_parent(place) {
            Ok(parent) => parent,
            Err(why) => return Vec::from([Err(why)]),
        };
        let count = interrupt_cells(self.node(parent)).unwrap_or(0);
        if count == 0 {
            return Vec::from([Err(NoInterrupt::NoParent)]);
        }
        for own in cells.chunks(count).take(MAX_INTERRUPTS) {
            let whole = if own.len() == count { Ok(own) } else { Err(NoInterrupt::CutShort) };
            let interrupt = whole.and_then(|own| self.follow(node, parent, own));
            let last = interrupt.is_err();
            found.push(interrupt);
            if last {
                break;
            }
        }
        found
    }

    /// The next node that interrupts of the node at `place` go to: the one that it names, or its parent in the tree, or
    /// one of theirs, the first that has `#interrupt-cells`.
    fn interrupt_parent(&self, place: Place) -> Result<Place, NoInterrupt> {
        let mut at = place;
        for _ in 0..self.len().min(64) {
            at = match self.node(at).cell("interrupt-parent") {
                Some(phandle) => self.with_phandle(phandle).ok_or(NoInterrupt::NoSuchNode(phandle))?,
                None => self.parent(at).ok_or(NoInterrupt::NoParent)?,
            };
            if interrupt_cells(self.node(at)).is_some() {
                return Ok(at);
            }
        }
        Err(NoInterrupt::Endless)
    }

    /// Follows an interrupt of `device`, which `cells` is at `parent`, to its controller.
    fn follow(&self, device: Node<'_, '_>, parent: Place, cells: &[u32]) -> Result<Specifier, NoInterrupt> {
        let (mut at, mut cells) = (parent, Vec::from(cells));
        // A nexus is asked about the unit address of the node that the interrupt comes from, in its children's cells.
        let mut unit: Vec<u32> = device.cells("reg").take(4).collect();
        for _ in 0..MAX_STEPS {
            let node = self.node(at);
            if node.property("interrupt-map").is_some() {
                let entry = self.map_entry(at, &unit, &cells)?;
                (at, unit, cells) = (entry.parent, entry.unit, entry.cells);
            } else if node.property("interrupt-controller").is_some() {
                return Ok(Specifier { controller: at, cells });
            } else {
                at = self.interrupt_parent(at)?;
            }
        }
        Err(NoInterrupt::Endless)
    }

    /// The first entry of the `interrupt-map` at `nexus` that matches (2.4.3).
    fn map_entry(&self, nexus: Place, unit: &[u32], cells: &[u32]) -> Result<MapEntry, NoInterrupt> {
        let node = self.node(nexus);
        let address_cells = self.address_cells(nexus);
        let unit = unit.iter().copied().chain(core::iter::repeat(0)).take(address_cells);
        let wanted: Vec<u32> = unit.chain(cells.iter().copied()).collect();
        let mask: Vec<u32> = node.cells("interrupt-map-mask").collect();
        let mask = |index: usize| mask.get(index).copied().unwrap_or(u32::MAX);
        let map: Vec<u32> = node.cells("interrupt-map").collect();
        let mut rest = &map[..];
        while !rest.is_empty() {
            let (key, behind) = rest.split_at_checked(wanted.len()).ok_or(NoInterrupt::CutShort)?;
            let (&phandle, behind) = behind.split_first().ok_or(NoInterrupt::CutShort)?;
            let parent = self.with_phandle(phandle).ok_or(NoInterrupt::NoSuchNode(phandle))?;
            let target = self.node(parent);
            // What a parent does not say it has none of.
            let unit_cells = target.cell("#address-cells").map_or(0, |count| count.min(4) as usize);
            let count = interrupt_cells(target).ok_or(NoInterrupt::NoParent)?;
            let (unit, behind) = behind.split_at_checked(unit_cells).ok_or(NoInterrupt::CutShort)?;
            let (own, behind) = behind.split_at_checked(count).ok_or(NoInterrupt::CutShort)?;
            self.map_entries.set(self.map_entries.get().checked_sub(1).ok_or(NoInterrupt::Endless)?);
            let matches = key.iter().zip(&wanted).enumerate().all(|(n, (key, wanted))| (key ^ wanted) & mask(n) == 0);
            if matches && target.is_enabled() {
                return Ok(MapEntry { parent, unit: Vec::from(unit), cells: Vec::from(own) });
            }
            rest = behind;
        }
        Err(NoInterrupt::NotInMap)
    }

    /// `#address-cells` of the node at `place` or of the nearest above it that has one, as Linux reads it; 2 if none has.
    fn address_cells(&self, place: Place) -> usize {
        let mut at = Some(place);
        while let Some(here) = at {
            if let Some(count) = self.node(here).cell("#address-cells") {
                return count.min(4) as usize;
            }
            at = self.parent(here);
        }
        2
    }
}

/// Where an entry of an `interrupt-map` leads.
struct MapEntry {
    parent: Place,
    unit: Vec<u32>,
    cells: Vec<u32>,
}

/// `#interrupt-cells` of a node, if it has any; more than eight has nothing.
fn interrupt_cells(node: Node<'_, '_>) -> Option<usize> {
    node.cell("#interrupt-cells").map(|count| count.min(8) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;
    use crate::tree::testing::{GIC3, TestNode};

    /// Where the interrupts of the node at `path` lead: the controller's path and the cells.
    fn resolved(tree: &TestNode, path: &str) -> Vec<Result<(alloc::string::String, Vec<u32>), NoInterrupt>> {
        let checked = tree.checked();
        let tree = Tree::open(&checked);
        let index = Index::new(tree.root().unwrap());
        let place = index.places().find(|&place| index.path(place) == path).unwrap();
        let named = |specifier: Specifier| (index.path(specifier.controller), specifier.cells);
        index.interrupts(place).into_iter().map(|interrupt| interrupt.map(named)).collect()
    }

    fn uart(change: impl FnOnce(&mut TestNode)) -> Vec<Result<(alloc::string::String, Vec<u32>), NoInterrupt>> {
        let mut tree = TestNode::parse(GIC3);
        change(&mut tree);
        resolved(&tree, "/pl011@9000000")
    }

    fn at_gic(cells: &[u32]) -> Result<(alloc::string::String, Vec<u32>), NoInterrupt> {
        Ok(("/intc@8000000".into(), Vec::from(cells)))
    }

    const GIC: u32 = 0x8005;

    #[test]
    fn an_inherited_parent_is_found() {
        assert_eq!(uart(|_| ()), [at_gic(&[0, 1, 4])]);
        let timer = resolved(&TestNode::parse(GIC3), "/timer");
        assert_eq!(timer, [13, 14, 11, 10].map(|number| at_gic(&[1, number, 4])));
        // A parent of its own, by number only.
        assert_eq!(
            uart(|tree| {
                tree.unset("interrupt-parent");
                tree.at("pl011@9000000").set_cells("interrupt-parent", &[GIC]);
            }),
            [at_gic(&[0, 1, 4])]
        );
        assert_eq!(
            uart(|tree| {
                tree.unset("interrupt-parent");
            }),
            [Err(NoInterrupt::NoParent)]
        );
        assert_eq!(
            uart(|tree| {
                tree.set_cells("interrupt-parent", &[0x777]);
            }),
            [Err(NoInterrupt::NoSuchNode(0x777))]
        );
    }

    #[test]
    fn extended_interrupts_come_before_plain_ones() {
        let extended = |cells: &'static [u32]| {
            uart(move |tree| {
                tree.at("pl011@9000000").set_cells("interrupts-extended", cells);
            })
        };
        assert_eq!(extended(&[GIC, 0, 9, 4]), [at_gic(&[0, 9, 4])]);
        assert_eq!(extended(&[0, GIC, 0, 9, 4, GIC, 1, 2, 3]), [at_gic(&[0, 9, 4]), at_gic(&[1, 2, 3])]);
        assert_eq!(extended(&[GIC, 0, 9, 4, GIC, 1]), [at_gic(&[0, 9, 4]), Err(NoInterrupt::CutShort)]);
        assert_eq!(extended(&[7, 0, 9, 4]), [Err(NoInterrupt::NoSuchNode(7))]);
    }

    /// A nexus that knows two addresses, in front of another that adds 32 to each interrupt by its own entries.
    #[test]
    fn nexus_nodes_are_gone_through() {
        let mapped = |reg: u32, interrupt: u32, mask: &'static [u32]| {
            uart(move |tree| {
                let mut outer = TestNode::new("outer");
                outer
                    .set_cells("phandle", &[0x71])
                    .set_cells("#interrupt-cells", &[1])
                    .set_cells("#address-cells", &[0]);
                outer.set_cells("interrupt-map", &[5, GIC, 0, 0, 0, 37, 4, 6, GIC, 0, 0, 0, 38, 1]);
                let mut nexus = TestNode::new("nexus");
                nexus
                    .set_cells("phandle", &[0x70])
                    .set_cells("#interrupt-cells", &[1])
                    .set_cells("#address-cells", &[1]);
                nexus.set_cells("interrupt-map", &[0x100, 1, 0x71, 5, 0x200, 1, 0x71, 6]);
                if !mask.is_empty() {
                    nexus.set_cells("interrupt-map-mask", mask);
                }
                tree.add(outer).add(nexus);
                let node = tree.at("pl011@9000000");
                node.set_cells("interrupt-parent", &[0x70]).set_cells("interrupts", &[interrupt]);
                node.set_cells("reg", &[reg, 0x1000]);
            })
        };
        assert_eq!(mapped(0x100, 1, &[]), [at_gic(&[0, 37, 4])]);
        assert_eq!(mapped(0x200, 1, &[]), [at_gic(&[0, 38, 1])]);
        assert_eq!(mapped(0x200, 2, &[]), [Err(NoInterrupt::NotInMap)]);
        assert_eq!(mapped(0x2ff, 1, &[0xff00, 1]), [at_gic(&[0, 38, 1])]);
        assert_eq!(mapped(0x2ff, 7, &[0xff00, 0]), [at_gic(&[0, 38, 1])]);
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(
            uart(|tree| {
                let mut nexus = TestNode::new("nexus");
                nexus
                    .set_cells("phandle", &[0x70])
                    .set_cells("#interrupt-cells", &[1])
                    .set_cells("#address-cells", &[0]);
                nexus.set_cells("interrupt-map", &[1, 0x70, 1]);
                tree.add(nexus);
                tree.at("pl011@9000000").set_cells("interrupts-extended", &[0x70, 1]);
            }),
            [Err(NoInterrupt::Endless)]
        );
        assert_eq!(
            uart(|tree| {
                let mut loops = TestNode::new("loops");
                loops.set_cells("phandle", &[0x70]).set_cells("interrupt-parent", &[0x70]);
                tree.add(loops);
                tree.at("pl011@9000000").set_cells("interrupt-parent", &[0x70]);
            }),
            [Err(NoInterrupt::Endless)]
        );
    }

    /// Trees made long ago number their nodes by another property.
    #[test]
    fn old_phandles_are_read() {
        assert_eq!(
            uart(|tree| {
                let gic = tree.at("intc@8000000");
                let phandle = gic.cells("phandle");
                gic.unset("phandle").set_cells("linux,phandle", &phandle);
            }),
            [at_gic(&[0, 1, 4])]
        );
    }
}
