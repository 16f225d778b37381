//! Why a machine can't be run, in sentences for people.

use crate::range::PhysRange;
use crate::tree::interrupts::NoInterrupt;
use alloc::string::String;
use core::fmt;

/// What is missing or wrong in the device tree, or in what the boot loader put where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// No enabled memory node with a byte in it.
    NoMemory,
    /// A `reg` that can't be read: missing, cut short, wrapping round, or on a bus that CPUs don't see.
    BadReg {
        /// The node.
        path: String,
    },
    /// More of something than there is room for.
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// No CPU.
    NoCpus,
    /// Two CPU nodes with one number.
    SameCpuTwice {
        /// The number.
        mpidr: u64,
    },
    /// A CPU that PSCI does not start.
    NotPsci {
        /// The node's name.
        cpu: String,
    },
    /// No PSCI 0.2 or later.
    NoPsci,
    /// PSCI through neither SMC nor HVC.
    BadPsciMethod {
        /// What stands there.
        found: String,
    },
    /// No interrupt controller.
    NoGic,
    /// Neither GICv2 nor GICv3.
    UnknownGic {
        /// Its name.
        compatible: String,
    },
    /// A GIC with something missing.
    BadGic {
        /// The node.
        path: String,
        /// What it lacks.
        lacks: &'static str,
    },
    /// A transport that `mediate` names and that EL2 cannot stand before.
    NotMediated {
        /// Its address.
        address: u64,
        /// Why.
        why: &'static str,
    },
    /// No generic timer.
    NoTimer,
    /// The generic timer's interrupts are at no interrupt controller.
    NoTimerInterrupt {
        /// Why not.
        why: NoInterrupt,
    },
    /// No module is a kernel.
    NoKernel,
    /// A module that is neither a kernel nor an initramfs.
    UnknownModule {
        /// The node.
        path: String,
    },
    /// The hypervisor's own command line is no text.
    BadBootargs {
        /// The property.
        property: &'static str,
        /// What can be read of it.
        text: String,
    },
    /// Two modules of one kind.
    ModuleTwice {
        /// `kernel` or `ramdisk`.
        kind: &'static str,
    },
    /// The hypervisor or a module does not lie in RAM.
    OutsideRam {
        /// Which.
        what: String,
        /// Where it lies.
        range: PhysRange,
    },
    /// The hypervisor or a module lies over something else.
    Overlap {
        /// Which.
        what: String,
        /// Where it lies.
        range: PhysRange,
        /// What else.
        other: String,
        /// Where that lies.
        with: PhysRange,
    },
    /// A device that the guest is given shares a page with what it must not have.
    SharedPage {
        /// The device.
        device: String,
        /// Its registers.
        registers: PhysRange,
        /// What it must not have.
        other: String,
        /// Where that lies.
        range: PhysRange,
    },
    /// A device that the guest is given does not fill its pages.
    PartOfPage {
        /// The device.
        device: String,
        /// Its registers.
        registers: PhysRange,
        /// Bytes of a page.
        page: u64,
    },
    /// No redistributor is where one must be.
    NoRedistributor {
        /// Where.
        address: u64,
    },
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str(
                "the device tree has no memory: add a node with device_type = \"memory\" and the RAM in its reg",
            ),
            Self::BadReg { path } => {
                write!(f, "the device tree's {path} has no address that can be read: correct its reg")
            }
            Self::TooMany { what, most } => {
                write!(f, "the device tree has more {what} than the {most} that there is room for: leave some out")
            }
            Self::NoCpus => f.write_str("the device tree has no CPU: add /cpus with a cpu node for each"),
            Self::SameCpuTwice { mpidr } => {
                write!(f, "the device tree has two CPUs with the number {mpidr:#x}: give each its own MPIDR as reg")
            }
            Self::NotPsci { cpu } => write!(
                f,
                "the device tree's /cpus/{cpu} is not started by PSCI: only enable-method = \"psci\" is supported"
            ),
            Self::NoPsci => f.write_str(
                "the device tree has no PSCI: a node with compatible = \"arm,psci-0.2\" or \"arm,psci-1.0\" is needed \
                 to start CPUs and to power off",
            ),
            Self::BadPsciMethod { found } => {
                write!(f, "the device tree's PSCI has the method {found}: it must be \"smc\" or \"hvc\"")
            }
            Self::NoGic => f.write_str("the device tree has no interrupt controller: a GICv2 or GICv3 is needed"),
            Self::UnknownGic { compatible } => {
                write!(f, "the device tree's interrupt controller {compatible} is not known: it must be GICv2 or GICv3")
            }
            Self::BadGic { path, lacks } => write!(f, "the device tree's {path} lacks {lacks}"),
            Self::NotMediated { address, why } => {
                write!(f, "mediate={address:#x}: EL2 can't stand between this device and the guest: {why}")
            }
            Self::NoTimer => f.write_str(
                "the device tree has no generic timer: a node with compatible = \"arm,armv8-timer\" and its \
                 interrupts is needed",
            ),
            Self::NoTimerInterrupt { why } => write!(
                f,
                "the device tree's generic timer has no interrupt: {why}; correct its interrupts or interrupt-parent"
            ),
            Self::NoKernel => f.write_str(
                "no guest kernel was loaded: pass one as a multiboot,kernel module in /chosen (with QEMU: -device \
                 guest-loader,addr=ADDRESS,kernel=FILE)",
            ),
            Self::UnknownModule { path } => {
                write!(f, "the module {path} is of no known kind: it must be multiboot,kernel or multiboot,ramdisk")
            }
            Self::BadBootargs { property, text } => write!(
                f,
                "the hypervisor's command line, {property} of /chosen, has bytes that are no UTF-8 text: write its \
                 options in ASCII ({text})"
            ),
            Self::ModuleTwice { kind } => {
                write!(f, "there are two multiboot,{kind} modules in /chosen: pass one, there is one guest")
            }
            Self::OutsideRam { what, range } => {
                write!(f, "{what} at {range} does not lie in RAM: load it elsewhere, or give more memory")
            }
            Self::Overlap { what, range, other, with } => {
                write!(f, "{what} at {range} overlaps {other} at {with}: load it elsewhere")
            }
            Self::SharedPage { device, registers, other, range } => write!(
                f,
                "the device tree has {device} at {registers} in the same pages as {other} at {range}, and the guest \
                 would be given both: correct the tree"
            ),
            Self::PartOfPage { device, registers, page } => part_of_page(f, device, *registers, *page),
            Self::NoRedistributor { address } => write!(
                f,
                "the device tree says that a GICv3 redistributor is at {address:#x}, but its GICR_PIDR2 is none: correct \
                 the reg, #redistributor-regions or redistributor-stride of the interrupt controller"
            ),
        }
    }
}

/// [`MachineError::PartOfPage`].
fn part_of_page(f: &mut fmt::Formatter<'_>, device: &str, registers: PhysRange, page: u64) -> fmt::Result {
    write!(
        f,
        "the device tree has {device} at {registers}, which are not whole pages of {} KiB, and the guest would be given what \
         else is there: correct the tree",
        page >> 10
    )?;
    if page > 4096 { f.write_str(", or take the hypervisor with pages of 4 KiB") } else { Ok(()) }
}

impl core::error::Error for MachineError {}
