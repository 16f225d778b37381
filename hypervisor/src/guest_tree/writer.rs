//! What writes a guest's tree: nodes, and properties of the kinds that there are.

use super::error::GuestTreeError;
use crate::machine::{Interrupt, InterruptKind};
use crate::range::PhysRange;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use vm_fdt::{FdtWriter, FdtWriterNode};

/// The peripherals' clock's phandle.
pub(super) const CLOCK: u32 = 2;

/// The tree being written.
pub(super) struct Writer {
    pub fdt: FdtWriter,
}

/// Nothing, or why not.
pub(super) type Written = Result<(), GuestTreeError>;

impl Writer {
    /// Writes a node; `inside` writes its properties, then its children.
    pub fn node(&mut self, name: &str, inside: impl FnOnce(&mut Self) -> Written) -> Written {
        let node: FdtWriterNode = self.fdt.begin_node(name)?;
        inside(self)?;
        Ok(self.fdt.end_node(node)?)
    }

    pub fn cell(&mut self, name: &str, value: u32) -> Written {
        Ok(self.fdt.property_u32(name, value)?)
    }

    pub fn text(&mut self, name: &str, value: &str) -> Written {
        Ok(self.fdt.property_string(name, value)?)
    }

    pub fn texts(&mut self, name: &str, values: &[&str]) -> Written {
        let values = values.iter().map(|&value| String::from(value)).collect();
        Ok(self.fdt.property_string_list(name, values)?)
    }

    pub fn flag(&mut self, name: &str) -> Written {
        Ok(self.fdt.property_null(name)?)
    }

    /// `reg` with the root's cell counts.
    pub fn reg(&mut self, ranges: &[PhysRange]) -> Written {
        let cells: Vec<u64> = ranges.iter().flat_map(|range| [range.start(), range.size()]).collect();
        Ok(self.fdt.property_array_u64("reg", &cells)?)
    }

    pub fn interrupts(&mut self, interrupts: &[Interrupt]) -> Written {
        let cells = |interrupt: &Interrupt| match interrupt.kind {
            InterruptKind::Spi => [0, interrupt.number, interrupt.flags],
            InterruptKind::Ppi => [1, interrupt.number, interrupt.flags],
        };
        let cells: Vec<u32> = interrupts.iter().flat_map(cells).collect();
        Ok(self.fdt.property_array_u32("interrupts", &cells)?)
    }

    /// `clocks` and their names: each is the one clock that there is.
    pub fn clocks(&mut self, names: &[&str]) -> Written {
        if names.is_empty() {
            return Ok(());
        }
        let signals: Vec<u32> = names.iter().map(|_| CLOCK).collect();
        self.fdt.property_array_u32("clocks", &signals)?;
        self.texts("clock-names", names)
    }
}

/// A node's name with its unit address.
pub(super) fn unit(name: &str, registers: PhysRange) -> String {
    format!("{name}@{:x}", registers.start())
}
