//! A board's device tree with what a boot loader would add: the modules.

use super::modules::{BOOTARGS, Modules};
use anyhow::{Result, anyhow};
use hypervisor::tree::edit::Branch;

/// The tree with the guest's files as modules in `/chosen`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn with_modules(tree: &[u8], modules: &Modules) -> Result<Vec<u8>> {
    let mut tree = Branch::read(tree).map_err(|error| anyhow!("{error}"))?;
    if !tree.children.iter().any(|node| node.name == "chosen") {
        tree.add(Branch::new("chosen"));
    }
    let chosen = tree.at("chosen");
    chosen.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]);
    for (kind, module) in [("kernel", &modules.kernel), ("ramdisk", &modules.initrd)] {
        let mut node = Branch::new(&format!("module@{:x}", module.address));
        node.set("compatible", format!("multiboot,{kind}\0multiboot,module\0"));
        let cells = [module.address, module.bytes].map(|number| [(number >> 32) as u32, number as u32]);
        node.set_cells("reg", cells.as_flattened());
        if kind == "kernel" {
            node.set("bootargs", format!("{BOOTARGS}\0"));
        }
        chosen.add(node);
    }
    Ok(tree.bytes())
}
