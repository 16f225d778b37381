//! A machine for QEMU to run: from what the user asked for to QEMU's arguments.

pub mod board;
pub mod files;

use crate::guest_kernel;
use crate::placement::{self, RAM_BASE};
use crate::size::Size;
use anyhow::{Context, Result, bail, ensure};
use board::Board;
use files::{double_commas, file_size};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The interrupt controller's architecture version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: at most eight CPUs.
    V2,
    /// GICv3.
    V3,
}

/// A file in RAM that the hypervisor finds as a `multiboot,module` node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Physical address of its first byte.
    pub address: u64,
    /// The file.
    pub file: PathBuf,
    /// A kernel with its arguments, or an initramfs (`None`).
    pub bootargs: Option<String>,
}

/// UEFI firmware that starts the machine from a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uefi {
    /// The firmware's code.
    pub code: PathBuf,
    /// The folder whose files are its disk.
    pub disk: PathBuf,
    /// Whether it describes the machine by ACPI tables instead of a device tree.
    pub acpi: bool,
}

/// RAM, unless something else is asked for.
pub const MEMORY: Size = Size::mib(1024);

/// Virtio-mmio transports of the `virt` machine, each of 0x200 bytes, so that eight share a page.
const VIRTIO_BASE: u64 = 0x0a00_0000;
const VIRTIO_STRIDE: u64 = 0x200;
const VIRTIO_PER_PAGE: usize = 8;
/// The last page stays free for the hypervisor's own devices.
const GRANTABLE_PAGES: usize = 3;
/// The store's, behind the management core's console.
const STORE_TRANSPORT: usize = 25;

/// A machine. Fields that no method sets may be set directly.
#[derive(Debug, Clone)]
pub struct Machine {
    /// QEMU's `-cpu`; for `max` the fast pointer authentication is added.
    pub cpu: String,
    /// The interrupt controller.
    pub gic: Gic,
    /// CPUs.
    pub smp: u32,
    /// RAM.
    pub memory: Size,
    /// Whether there is an EL2; without it, an image starts at EL1.
    pub virtualization: bool,
    /// One tick of the counter is one instruction, and every run is the same.
    pub icount: bool,
    /// What QEMU loads and starts: the hypervisor, or a kernel for comparison.
    pub kernel: PathBuf,
    /// The firmware that starts the machine instead; what it loads is on its disk, so that `kernel`, `append`, `initrd` and
    /// `modules` are not passed to QEMU.
    pub uefi: Option<Uefi>,
    /// The kernel's arguments: `/chosen/bootargs`.
    pub append: String,
    /// An initramfs for `kernel`.
    pub initrd: Option<PathBuf>,
    /// What guest-loader puts into RAM.
    pub modules: Vec<Module>,
    /// Another machine than `virt`, or one that a boot loader starts.
    pub board: Option<Board>,
    /// More arguments for QEMU, after all others.
    pub extra: Vec<OsString>,
    /// Files that QEMU inherits, kept open.
    pub inherited: Vec<Arc<OwnedFd>>,
}

impl Machine {
    /// A machine with `kernel` on it: CPU `max`, GICv3, one CPU, 1 GiB.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            cpu: "max".into(),
            gic: Gic::V3,
            smp: 1,
            memory: MEMORY,
            virtualization: true,
            icount: false,
            kernel: kernel.into(),
            uefi: None,
            append: String::new(),
            initrd: None,
            modules: Vec::new(),
            board: None,
            extra: Vec::new(),
            inherited: Vec::new(),
        }
    }

    /// Gives the hypervisor a guest: places a kernel and an initramfs in RAM so that nothing overlaps.
    ///
    /// # Errors
    /// If a file is missing or can't be used, or the memory is too small.
    pub fn load_guest(&mut self, kernel: &Path, initrd: Option<&Path>, bootargs: &str) -> Result<()> {
        let shape = guest_kernel::shape(kernel)?;
        let initrd_size = initrd.map_or(Ok(0), file_size)?;
        let at = placement::place(self.memory, shape, initrd_size)?;
        let kernel = Module { address: at.kernel, file: kernel.to_owned(), bootargs: Some(bootargs.to_owned()) };
        self.modules = vec![kernel];
        if let Some(initrd) = initrd {
            self.modules.push(Module { address: at.initrd, file: initrd.to_owned(), bootargs: None });
        }
        Ok(())
    }

    /// Adds virtio-mmio devices (QEMU's `-device` syntax), each on a page of transports of its own, and returns the
    /// physical addresses of their transports.
    ///
    /// # Errors
    /// If there are more devices than pages, or one is no virtio-mmio device.
    pub fn add_virtio(&mut self, devices: &[String]) -> Result<Vec<u64>> {
        ensure!(
            devices.len() <= GRANTABLE_PAGES,
            "{} devices are too many for --grant-dma, for each needs a page of transports of its own; grant {GRANTABLE_PAGES} \
             at most",
            devices.len()
        );
        devices.iter().enumerate().map(|(page, device)| self.add_transport(page * VIRTIO_PER_PAGE, device)).collect()
    }

    /// Adds virtio-mmio devices side by side, behind the pages of so many that [`Machine::add_virtio`] has added.
    ///
    /// # Errors
    /// If there are more devices than transports, or one is no virtio-mmio device.
    pub fn add_behind(&mut self, pages: usize, devices: &[String]) -> Result<Vec<u64>> {
        let free = GRANTABLE_PAGES.saturating_sub(pages) * VIRTIO_PER_PAGE;
        ensure!(
            devices.len() <= free,
            "{} devices are too many, for there is room for {free}; name fewer",
            devices.len()
        );
        let first = pages * VIRTIO_PER_PAGE;
        devices.iter().enumerate().map(|(index, device)| self.add_transport(first + index, device)).collect()
    }

    fn add_transport(&mut self, transport: usize, device: &str) -> Result<u64> {
        Self::check_virtio(device)?;
        let modern: [OsString; 2] = ["-global".into(), "virtio-mmio.force-legacy=false".into()];
        if !self.extra.windows(2).any(|words| words == modern) {
            self.extra.extend(modern);
        }
        self.extra.extend(["-device".into(), format!("{device},bus=virtio-mmio-bus.{transport}").into()]);
        Ok(VIRTIO_BASE + VIRTIO_STRIDE * transport as u64)
    }

    /// Refuses what is no virtio-mmio device.
    ///
    /// # Errors
    /// If the model's name is none of these.
    pub fn check_virtio(device: &str) -> Result<()> {
        let model = device.split(',').next().unwrap_or_default();
        if !(model.starts_with("virtio-") && model.ends_with("-device")) {
            bail!(
                "`{model}` is not a virtio-mmio device; name one as QEMU does, virtio-...-device, as in virtio-rng-device"
            );
        }
        Ok(())
    }

    /// Adds a disk at virtio-mmio transport `transport`, which the hypervisor mediates. What is written is forgotten with the machine.
    ///
    /// # Errors
    /// If the file's name can't be passed on.
    pub fn add_mediated_disk(&mut self, file: &Path, transport: usize) -> Result<()> {
        let file = file.to_str().with_context(|| format!("{} is not valid UTF-8", file.display()))?;
        let drive = format!("if=none,id=mediated,format=raw,snapshot=on,file={}", double_commas(file));
        self.extra.extend(["-drive".into(), drive.into()]);
        let address = self.add_transport(transport, "virtio-blk-device,drive=mediated")?;
        self.append += &format!(" mediate=virtio_mmio@{address:x}");
        Ok(())
    }

    /// Adds the disk that a guest is saved in or comes from, which is the hypervisor's own: its back end is `file`, which others may
    /// have open, too.
    ///
    /// # Errors
    /// If the file's name can't be passed on.
    pub fn add_store(&mut self, file: &Path, read_only: bool) -> Result<()> {
        let file = file.to_str().with_context(|| format!("{} is not valid UTF-8", file.display()))?;
        let access = if read_only { "on" } else { "off" };
        let file = double_commas(file);
        let block = format!(
            "driver=raw,node-name=store,read-only={access},file.driver=file,file.filename={file},file.locking=off"
        );
        self.extra.extend(["-blockdev".into(), block.into()]);
        // A disk that is full is the hypervisor's to know: QEMU would stop the machine.
        let errors = if read_only { "rerror=report" } else { "rerror=report,werror=report" };
        let address =
            self.add_transport(STORE_TRANSPORT, &format!("virtio-blk-device,drive=store,indirect_desc=off,{errors}"))?;
        self.append += &format!(" store=virtio_mmio@{address:x}");
        Ok(())
    }

    /// QEMU's arguments, all but those that say where the console goes.
    ///
    /// # Errors
    /// If a file is missing, or QEMU could not run what is asked for.
    pub fn arguments(&self) -> Result<Vec<OsString>> {
        ensure!(self.smp >= 1, "a machine needs at least one CPU");
        if let Some(board) = &self.board {
            let mut arguments = board.arguments(self.smp, self.memory, &self.kernel, &self.append)?;
            arguments.extend(self.extra.iter().cloned());
            return Ok(arguments);
        }
        ensure!(self.gic != Gic::V2 || self.smp <= 8, "GICv2 serves at most 8 CPUs; use --gic 3");
        file_size(&self.kernel)?;
        let mut machine = String::from("virt");
        if self.virtualization {
            machine += ",virtualization=on";
        }
        machine += match self.gic {
            Gic::V2 => ",gic-version=2",
            Gic::V3 => ",gic-version=3",
        };
        let mut cpu = self.cpu.clone();
        if self.uefi.as_ref().is_some_and(|uefi| !uefi.acpi) {
            machine += ",acpi=off";
        }
        if self.icount {
            machine += ",dtb-randomness=off";
            // Pointer authentication costs time but no instructions of its own; the counter ticks once per instruction.
            cpu += if cpu == "max" { ",pauth=off,cntfrq=1000000000" } else { ",cntfrq=1000000000" };
        } else if cpu == "max" {
            // QARMA5 is slow in an emulator; the architecture allows any algorithm.
            cpu += ",pauth-impdef=on";
        }
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&["-M", &machine, "-cpu", &cpu, "-smp", &self.smp.to_string()]);
        add(&["-m", &format!("{}K", self.memory.0 >> 10), "-display", "none", "-nic", "none", "-no-reboot"]);
        if self.icount {
            add(&["-icount", "shift=0,sleep=off", "-seed", "1", "-rtc", "base=2024-01-01,clock=vm"]);
        }
        match &self.uefi {
            Some(uefi) => arguments.extend(uefi.arguments()?),
            None => self.add_files(&mut arguments)?,
        }
        arguments.extend(self.extra.iter().cloned());
        Ok(arguments)
    }

    /// The arguments for what QEMU itself loads.
    fn add_files(&self, arguments: &mut Vec<OsString>) -> Result<()> {
        arguments.extend(["-kernel".into(), self.kernel.clone().into()]);
        if !self.append.is_empty() {
            arguments.extend(["-append".into(), self.append.clone().into()]);
        }
        if let Some(initrd) = &self.initrd {
            file_size(initrd)?;
            arguments.extend(["-initrd".into(), initrd.clone().into()]);
        }
        for module in &self.modules {
            file_size(&module.file)?;
            arguments.extend(["-device".into(), module.device()?]);
        }
        Ok(())
    }

    /// The first address behind RAM.
    pub fn memory_end(&self) -> u64 {
        RAM_BASE + self.memory.0
    }
}

impl Uefi {
    fn arguments(&self) -> Result<[OsString; 6]> {
        file_size(&self.code)?;
        let disk = self.disk.to_str().with_context(|| format!("{} is not valid UTF-8", self.disk.display()))?;
        let disk = format!("driver=vvfat,node-name=firmware-disk,read-only=on,dir={}", double_commas(disk));
        let [bios, blockdev, device] = ["-bios", "-blockdev", "-device"].map(OsString::from);
        Ok([bios, self.code.clone().into(), blockdev, disk.into(), device, "virtio-blk-pci,drive=firmware-disk".into()])
    }
}

impl Module {
    /// The `guest-loader` that puts it there.
    fn device(&self) -> Result<OsString> {
        let file = self.file.to_str().with_context(|| format!("{} is not valid UTF-8", self.file.display()))?;
        let mut device = format!("guest-loader,addr={:#x}", self.address);
        let file = double_commas(file);
        match &self.bootargs {
            // An empty value is not the same as none to QEMU: leave it out.
            Some(bootargs) if bootargs.is_empty() => device += &format!(",kernel={file}"),
            Some(bootargs) => device += &format!(",kernel={file},bootargs={}", double_commas(bootargs)),
            None => device += &format!(",initrd={file}"),
        }
        Ok(device.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that surely exists.
    fn file() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")
    }

    fn line(machine: &Machine) -> String {
        let words: Vec<String> =
            machine.arguments().unwrap().into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn a_plain_machine() {
        let line = line(&Machine::new(file()));
        assert!(
            line.starts_with("-M virt,virtualization=on,gic-version=3 -cpu max,pauth-impdef=on -smp 1 -m 1048576K")
        );
        assert!(line.contains("-nic none") && line.contains("-no-reboot"));
        assert!(!line.contains("-append"));
    }

    #[test]
    fn counting_instructions() {
        let line = line(&Machine { icount: true, ..Machine::new(file()) });
        assert!(line.contains("max,pauth=off,cntfrq=1000000000") && line.contains("-icount shift=0,sleep=off"));
    }

    #[test]
    fn modules_with_commas() {
        let mut machine = Machine::new(file());
        machine.load_guest(&file(), Some(&file()), "console=ttyAMA0,115200 quiet").unwrap();
        let line = line(&machine);
        assert!(line.contains("bootargs=console=ttyAMA0,,115200 quiet"), "{line}");
        assert!(line.contains(",initrd="));
        assert!(machine.modules[0].address < machine.modules[1].address);
    }

    #[test]
    fn what_can_not_run_is_refused() {
        let refused = |machine: Machine| machine.arguments().unwrap_err().to_string();
        assert!(refused(Machine { gic: Gic::V2, smp: 9, ..Machine::new(file()) }).contains("GICv2"));
        assert!(refused(Machine { smp: 0, ..Machine::new(file()) }).contains("CPU"));
        assert!(refused(Machine::new("/no/such/image")).contains("/no/such/image"));
        assert!(refused(Machine { initrd: Some("/no/such/initrd".into()), ..Machine::new(file()) }).contains("initrd"));
    }

    #[test]
    fn firmware_loads_what_is_on_its_disk() {
        let mut machine = Machine { append: "log=info".into(), ..Machine::new(file()) };
        machine.load_guest(&file(), None, "").unwrap();
        machine.uefi = Some(Uefi { code: file(), disk: "a,b".into(), acpi: false });
        let text = line(&machine);
        assert!(text.contains("virtualization=on,gic-version=3,acpi=off") && text.contains("dir=a,,b"), "{text}");
        assert!(!["-kernel", "-append", "guest-loader"].iter().any(|word| text.contains(word)), "{text}");
        machine.uefi = Some(Uefi { code: file(), disk: "a".into(), acpi: true });
        assert!(!line(&machine).contains("acpi"));
        machine.uefi = Some(Uefi { code: "/no/such/firmware".into(), disk: "a".into(), acpi: true });
        assert!(machine.arguments().unwrap_err().to_string().contains("/no/such/firmware"));
    }

    #[test]
    fn granted_devices_have_a_page_each() {
        let mut machine = Machine::new(file());
        let devices = ["virtio-rng-device".to_owned(), "virtio-net-device,netdev=n".to_owned()];
        assert_eq!(machine.add_virtio(&devices).unwrap(), [0x0a00_0000, 0x0a00_1000]);
        assert!(line(&machine).contains("virtio-net-device,netdev=n,bus=virtio-mmio-bus.8"));
        assert!(machine.add_virtio(&["e1000".to_owned()]).is_err());
        assert!(machine.add_virtio(&vec!["virtio-rng-device".to_owned(); 4]).is_err());
        assert_eq!(machine.add_behind(2, &devices).unwrap(), [0x0a00_2000, 0x0a00_2200]);
        assert!(machine.add_behind(2, &vec!["virtio-rng-device".to_owned(); 9]).is_err());
        assert_eq!(line(&machine).matches("force-legacy").count(), 1);
    }
}
