//! Boards that QEMU models, and boot loaders, from power-on to a Linux under the hypervisor that prints on its own UART.

mod modules;
mod script;
mod tree;

use crate::console::{Console, End, Extract};
use crate::initramfs::{self, Command};
use crate::machine::Machine;
use crate::machine::board::Board as Start;
use crate::run::{self, Flow, Outcome};
use crate::setup::apt::checked;
use crate::setup::emulator::Emulator;
use crate::setup::guest::{Guest, board_kernel, board_trees};
use crate::setup::u_boot;
use crate::size::Size;
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result};
use modules::Modules;
use script::Script;
use std::path::Path;
use std::time::Duration;

/// The least QEMU that has all boards.
pub const LEAST_QEMU: u32 = 10;

/// One way to start the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board {
    /// What the table and `--only` call it.
    pub name: &'static str,
    /// QEMU's `-machine`, with EL2 and without a secure world of the user's.
    machine: &'static str,
    /// The CPUs that Linux is to have.
    cpus: u32,
    /// CPUs of other kinds that the machine cannot be without.
    other_cpus: u32,
    /// RAM, in MiB.
    mib: u64,
    /// Where RAM starts.
    ram: u64,
    /// Serial ports in front of the console's.
    serials_before: usize,
    from: From,
}

/// What starts the hypervisor there, and where the tree comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// QEMU, with the tree of this name in Linux's kernel package.
    Linux(&'static str),
    /// QEMU, with its own tree for the machine.
    Qemu,
    /// U-Boot at EL2.
    UBoot,
}

/// All of them.
pub const BOARDS: [Board; 4] = [
    Board {
        name: "u-boot",
        machine: "virt,virtualization=on,gic-version=3",
        cpus: 2,
        other_cpus: 0,
        mib: 1024,
        ram: 0x4000_0000,
        serials_before: 0,
        from: From::UBoot,
    },
    Board {
        name: "xlnx-versal-virt",
        machine: "xlnx-versal-virt",
        cpus: 2,
        // Two Cortex-R5F, which stay off.
        other_cpus: 2,
        mib: 2048,
        ram: 0,
        serials_before: 0,
        from: From::Qemu,
    },
    Board {
        name: "xlnx-zcu102",
        machine: "xlnx-zcu102,virtualization=on",
        cpus: 4,
        other_cpus: 0,
        mib: 2048,
        ram: 0,
        serials_before: 0,
        from: From::Linux("xilinx/zynqmp-zcu102-rev1.0.dtb"),
    },
    Board {
        name: "imx8mp-evk",
        machine: "imx8mp-evk",
        cpus: 4,
        other_cpus: 0,
        mib: 2048,
        ram: 0x4000_0000,
        // Its console is the second UART.
        serials_before: 1,
        from: From::Linux("freescale/imx8mp-evk.dtb"),
    },
];

/// Where the hypervisor's image lies for U-Boot, and where the tree is moved to.
const IMAGE_OFFSET: u64 = 0x1000_0000;
const TREE_OFFSET: u64 = 0x800_0000;

/// What the guest says of its machine: a line for each.
const QUESTIONS: &str = "nproc
for node in /sys/firmware/devicetree/base/interrupt-controller*; do tr '\\0' ' ' <$node/compatible; echo; done
head -n1 /proc/consoles
";

/// What the guest said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The number of its CPUs.
    pub cpus: String,
    /// Its interrupt controller's name.
    pub gic: String,
    /// Its console.
    pub console: String,
}

/// How it went.
#[derive(Debug)]
pub struct Ran {
    /// What the guest said, if it was all there.
    pub said: Option<Said>,
    /// The run.
    pub outcome: Outcome,
}

impl Ran {
    /// Whether all is as it must be, or a sentence.
    ///
    /// # Errors
    /// What is missing.
    pub fn judge(&self, board: &Board) -> Result<(), String> {
        let Some(said) = &self.said else {
            return Err(match self.outcome.end {
                None => format!("Linux did not print on its UART ({:?})", self.outcome.stop),
                Some(end) => format!("Linux did not answer before the end ({end:?})"),
            });
        };
        if said.cpus != board.cpus.to_string() {
            return Err(format!("Linux has {} CPUs of {}", said.cpus, board.cpus));
        }
        match self.outcome.end {
            Some(End::PowerOff) => Ok(()),
            end => Err(format!("the hypervisor's last line is {end:?}, not its power-off")),
        }
    }
}

impl Board {
    /// Whether Debian 12's own QEMU has the machine.
    pub fn is_in_any_qemu(&self) -> bool {
        self.from == From::UBoot
    }

    /// What starts the hypervisor, for people.
    pub fn loader(&self) -> &'static str {
        match self.from {
            From::UBoot => "U-Boot, booti",
            From::Linux(_) | From::Qemu => "QEMU, -dtb",
        }
    }

    /// Whose device tree it is, for people.
    pub fn tree(&self) -> &'static str {
        match self.from {
            From::Linux(_) => "Linux's",
            From::Qemu | From::UBoot => "QEMU's",
        }
    }

    /// Boots Linux there. Files are made in `folder`, `image` is the hypervisor.
    ///
    /// # Errors
    /// If something can't be fetched, or QEMU can't be run. A boot that fails is a [`Ran`].
    pub fn boot(
        &self,
        workspace: &Workspace,
        emulator: &Emulator,
        image: &Path,
        folder: &Path,
        limit: Duration,
    ) -> Result<Ran> {
        let guest = Guest::get(workspace)?;
        // The cloud kernel has drivers for what `virt` has.
        let kernel = if self.from == From::UBoot { guest.kernel.clone() } else { board_kernel(workspace)? };
        let command = Command::new(QUESTIONS);
        let initrd = folder.join("initrd");
        write_whole(&initrd, &initramfs::archive(&guest.busybox, Some(&command))?)?;
        let modules = Modules::place(self.ram, &kernel, &initrd)?;

        let (start, mut script) = self.start(workspace, emulator, image, folder, &modules)?;
        let machine = Machine {
            smp: self.cpus + self.other_cpus,
            memory: Size::mib(self.mib),
            append: "log=info".into(),
            board: Some(start),
            ..Machine::new(image)
        };
        let (mut extract, mut output) = (Extract::new(&command.nonce), Vec::new());
        let observe = |bytes: &[u8], console: &Console| {
            extract.push(bytes, |_, bytes| output.extend_from_slice(bytes));
            script.next(console.bytes()).map_or(Flow::Continue, Flow::Send)
        };
        let outcome = run::capture(emulator, &machine, limit, observe)?;
        let said = if extract.status() == Some(0) { said(&String::from_utf8_lossy(&output)) } else { None };
        Ok(Ran { said, outcome })
    }

    /// How the machine starts, and what is typed.
    fn start(
        &self,
        workspace: &Workspace,
        emulator: &Emulator,
        image: &Path,
        folder: &Path,
        modules: &Modules,
    ) -> Result<(Start, Script)> {
        let mut start = Start {
            machine: self.machine.into(),
            cpu: None,
            tree: None,
            loader: None,
            serials_before: self.serials_before,
            files: modules.files(),
        };
        let given = match self.from {
            From::UBoot => {
                start.cpu = Some("max,pauth-impdef=on".into());
                start.loader = Some(u_boot::get(workspace)?);
                let image_at = self.ram + IMAGE_OFFSET;
                start.files.push((image.to_owned(), image_at));
                return Ok((start, Script::u_boot(self.ram, self.ram + TREE_OFFSET, image_at, modules)));
            }
            From::Linux(name) => board_trees(workspace)?.join(name),
            From::Qemu => {
                let path = folder.join("qemu.dtb");
                let machine = format!("{},dumpdtb={}", self.machine, path.display());
                let mut qemu = std::process::Command::new(&emulator.path);
                qemu.args([
                    "-M",
                    &machine,
                    "-smp",
                    &(self.cpus + self.other_cpus).to_string(),
                    "-m",
                    &self.mib.to_string(),
                ]);
                // Without something to start there is no PSCI in it.
                checked(qemu.args(["-display", "none", "-nic", "none", "-kernel"]).arg(image))?;
                path
            }
        };
        let bytes = std::fs::read(&given).with_context(|| format!("can't read {}", given.display()))?;
        let tree = folder.join("board.dtb");
        write_whole(&tree, &tree::with_modules(&bytes, modules).with_context(|| given.display().to_string())?)?;
        start.tree = Some(tree);
        Ok((start, Script::none()))
    }
}

/// Reads the guest's answers.
fn said(output: &str) -> Option<Said> {
    let mut lines = output.lines();
    let mut word = || lines.next()?.split_whitespace().next().map(str::to_owned);
    Some(Said { cpus: word()?, gic: word()?, console: word()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_words_of_three_lines() {
        let said = said("4\narm,gic-400 \nttyPS0               -W- (EC p a)    247:0\n").unwrap();
        assert_eq!((&*said.cpus, &*said.gic, &*said.console), ("4", "arm,gic-400", "ttyPS0"));
        assert_eq!(super::said("4\n"), None);
    }

    #[test]
    fn names_are_different() {
        let mut names = BOARDS.map(|board| board.name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
