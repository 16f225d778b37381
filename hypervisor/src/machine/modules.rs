//! What the boot loader put into memory for the guest, and the command lines.
//!
//! As QEMU's `guest-loader` and boot loaders for Xen write them, and as Xen's documentation (`device-tree/booting`) reads
//! them: children of `/chosen`, by the names of Xen 4.4 too; a module that does not say what it is is the kernel if it is
//! the first of those, and the initramfs if it is the second.

use super::error::MachineError;
use super::parts::Module;
use crate::range::PhysRange;
use crate::tree::{Bus, Node};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What the kernel takes of a command line, its last byte a NUL (`COMMAND_LINE_SIZE` of arm64 Linux).
const COMMAND_LINE_SIZE: usize = 2048;

/// What a module is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Ramdisk,
}

/// What was loaded for the guest.
pub(super) struct Modules {
    pub kernel: Option<Module>,
    pub initrd: Option<Module>,
    /// The hypervisor's own command line.
    pub bootargs: String,
    /// What was found and is not used.
    pub notes: Vec<String>,
}

impl Modules {
    /// Reads `/chosen`.
    pub fn read(root: Node<'_, '_>, chosen: Option<Node<'_, '_>>) -> Result<Self, MachineError> {
        let Some(chosen) = chosen else {
            return Ok(Self { kernel: None, initrd: None, bootargs: String::new(), notes: Vec::new() });
        };
        let bus = Bus::of_root(root).with_counts_of(chosen);
        let mut found = Found { kernel: None, initrd: None, unnamed: 0, notes: Vec::new() };
        for node in chosen.children() {
            found.add(&bus, &format!("/chosen/{}", node.name()), node)?;
        }
        if let Some(parent) = chosen.child("modules") {
            let bus = bus.with_counts_of(parent);
            for node in parent.children() {
                found.add(&bus, &format!("/chosen/{}/{}", parent.name(), node.name()), node)?;
            }
        }
        let Found { mut kernel, initrd, mut notes, .. } = found;
        // A property of Xen's says whose `bootargs` is: the hypervisor's own, unless it has `xen,xen-bootargs` for itself.
        let own = chosen.property("xen,xen-bootargs");
        let others = own.and(chosen.property("bootargs"));
        let guests = chosen.property("xen,dom0-bootargs").or(others);
        if let Some(kernel) = &mut kernel
            && kernel.bootargs.is_none()
        {
            kernel.bootargs = guests.map(text_of);
        }
        let (name, own) = match own {
            Some(own) => ("xen,xen-bootargs", own),
            None => ("bootargs", chosen.property("bootargs").unwrap_or_default()),
        };
        let bootargs = String::from_utf8(text_of(own)).map_err(|error| MachineError::BadBootargs {
            property: name,
            text: String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })?;
        let length = kernel.as_ref().and_then(|kernel| kernel.bootargs.as_ref()).map(Vec::len);
        if let Some(length) = length.filter(|&length| length >= COMMAND_LINE_SIZE) {
            notes.push(format!(
                "the guest's command line has {length} bytes, and an arm64 Linux takes {}: it leaves out the rest",
                COMMAND_LINE_SIZE - 1
            ));
        }
        Ok(Self { kernel, initrd, bootargs, notes })
    }
}

/// The bytes of a property up to its first NUL: a command line need not be UTF-8.
fn text_of(property: &[u8]) -> Vec<u8> {
    property.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

struct Found {
    kernel: Option<Module>,
    initrd: Option<Module>,
    /// Modules so far that do not say what they are.
    unnamed: usize,
    notes: Vec<String>,
}

impl Found {
    /// Takes in a node of `/chosen`, if it is a module.
    fn add(&mut self, bus: &Bus, path: &str, node: Node<'_, '_>) -> Result<(), MachineError> {
        let Some(kind) = self.kind(path, node)? else { return Ok(()) };
        let reg = bus.reg(node).unwrap_or_default();
        let range = reg.first().copied().filter(|range: &PhysRange| reg.len() == 1 && !range.is_empty());
        let range = range.ok_or_else(|| MachineError::BadReg { path: path.to_string() })?;
        let bootargs = node.property("bootargs").map(text_of);
        let (slot, name) = match kind {
            Kind::Kernel => (&mut self.kernel, "kernel"),
            Kind::Ramdisk => (&mut self.initrd, "ramdisk"),
        };
        match slot.replace(Module { name: path.to_string(), range, bootargs }) {
            Some(_) => Err(MachineError::ModuleTwice { kind: name }),
            None => Ok(()),
        }
    }

    /// What the node is, if it is a module that is used.
    fn kind(&mut self, path: &str, node: Node<'_, '_>) -> Result<Option<Kind>, MachineError> {
        let is = |names: [&str; 2]| names.into_iter().any(|name| node.is_compatible(name));
        if is(["multiboot,kernel", "xen,linux-zimage"]) {
            return Ok(Some(Kind::Kernel));
        }
        if is(["multiboot,ramdisk", "xen,linux-initrd"]) {
            return Ok(Some(Kind::Ramdisk));
        }
        if !is(["multiboot,module", "xen,multiboot-module"]) {
            return Ok(None);
        }
        if node.is_compatible("xen,xsm-policy") {
            self.notes.push(format!("the module {path} is a policy of Xen's, and not used"));
            return Ok(None);
        }
        let general = |name: &str| matches!(name, "multiboot,module" | "xen,multiboot-module");
        if node.strings("compatible").any(|name| !general(name)) {
            return Err(MachineError::UnknownModule { path: path.to_string() });
        }
        self.unnamed += 1;
        match self.unnamed {
            1 => Ok(Some(Kind::Kernel)),
            2 => Ok(Some(Kind::Ramdisk)),
            _ => {
                self.notes.push(format!("the module {path} does not say what it is, and is not used"));
                Ok(None)
            }
        }
    }
}
