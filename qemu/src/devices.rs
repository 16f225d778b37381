//! The guest's disks, its network and other virtio-mmio devices: from what the user named to QEMU's arguments and the
//! hypervisor's options.

use crate::disk::{self, Disk, Format};
use crate::machine::Machine;
use crate::machine::files::double_commas;
use crate::setup::rootfs::{Choice, Rootfs};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// The serial number by which the initramfs knows the disk with the root file system.
const ROOT_SERIAL: &str = "hv-root";
/// What QEMU's user network can be told (`-netdev user`), as far as it makes sense for one guest.
const NET_KEYS: &[&str] =
    &["hostfwd", "guestfwd", "restrict", "tftp", "bootfile", "hostname", "dnssearch", "domainname"];

/// Devices that have been looked at: nothing is wrong with them as far as the files say.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    root: Option<Root>,
    drives: Vec<Drive>,
    net: Option<String>,
    mediated: Vec<String>,
}

/// Where the root file system is.
#[derive(Debug, Clone)]
enum Root {
    /// In Debian's image, which is made if need be; what the guest writes goes into a layer that is thrown away.
    Debian,
    /// In a file of the user's, which keeps what the guest writes.
    Drive(Drive),
}

/// A file behind a disk of the guest's.
#[derive(Debug, Clone)]
struct Drive {
    file: PathBuf,
    format: Format,
    access: Access,
    /// Another machine has the file open, which ends before this one uses it.
    shared: bool,
}

/// What becomes of the guest's writes to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// The file keeps them.
    Write,
    /// There are none.
    ReadOnly,
    /// They are thrown away with the machine.
    Discard,
}

impl Devices {
    /// Looks at what the user has named.
    ///
    /// # Errors
    /// If a file can't be a disk or is named twice, or an option of the network is none.
    pub fn examine(root: Option<&Choice>, disks: &[Disk], net: Option<&str>, mediated: &[String]) -> Result<Self> {
        let root_disk = match root {
            Some(Choice::File(file)) => Some(Disk { file: file.clone(), read_only: false }),
            Some(Choice::Debian) | None => None,
        };
        disk::refuse_twice(&root_disk.iter().chain(disks).collect::<Vec<_>>())?;
        let examined = |disk: &Disk| {
            let access = if disk.read_only { Access::ReadOnly } else { Access::Write };
            disk.examine().map(|format| Drive { file: disk.file.clone(), format, access, shared: false })
        };
        let root = match root_disk {
            Some(disk) => Some(Root::Drive(examined(&disk).context("--rootfs takes `debian` or a disk's image")?)),
            None => root.map(|_| Root::Debian),
        };
        if let Some(options) = net {
            check_net(options)?;
        }
        for device in mediated {
            Machine::check_virtio(device)?;
        }
        let drives = disks.iter().map(examined).collect::<Result<_>>()?;
        Ok(Self { root, drives, net: net.map(str::to_owned), mediated: mediated.to_owned() })
    }

    /// The same for a machine that stands still until the one with these has ended: QEMU would not open a disk that another one may
    /// write.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        let drives = self.drives.iter().map(|drive| Drive { shared: true, ..drive.clone() });
        Self { drives: drives.collect(), ..self.clone() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.root.is_none() && self.drives.is_empty() && self.net.is_none() && self.mediated.is_empty()
    }

    /// Whether there is a root file system on a disk.
    pub fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// Gives the devices to a machine's guest, behind the `granted` ones that it has already.
    ///
    /// # Errors
    /// If the root file system can't be made, a port of this host is taken, or there are more devices than transports.
    pub fn attach(&self, workspace: &Workspace, machine: &mut Machine, granted: usize) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut models = Vec::new();
        let root = match &self.root {
            Some(Root::Debian) => {
                let rootfs = Rootfs::debian(workspace)?;
                self.say_how_to_log_in(&rootfs);
                Some(Drive { file: rootfs.image, format: Format::Raw, access: Access::Discard, shared: false })
            }
            Some(Root::Drive(drive)) => Some(drive.clone()),
            None => None,
        };
        for (index, drive) in root.iter().chain(&self.drives).enumerate() {
            let id = format!("disk{index}");
            let serial = if index == 0 && root.is_some() { ROOT_SERIAL } else { &id };
            machine.extra.extend(["-drive".into(), drive.argument(&id)?.into()]);
            models.push(format!("virtio-blk-device,drive={id},serial={serial}"));
        }
        if let Some(options) = &self.net {
            ensure_ports_are_free(options)?;
            let comma = if options.is_empty() { "" } else { "," };
            machine.extra.extend(["-netdev".into(), format!("user,id=net0{comma}{options}").into()]);
            models.push("virtio-net-device,netdev=net0".into());
        }
        models.extend(self.mediated.iter().cloned());
        for address in machine.add_behind(granted, &models)? {
            machine.append += &format!(" mediate={address:#x}");
        }
        Ok(())
    }

    fn say_how_to_log_in(&self, rootfs: &Rootfs) {
        let ports = self.net.iter().flat_map(|options| forwarded(options)).filter(|forward| forward.guest == 22);
        for forward in ports {
            if let Some(config) = &rootfs.ssh_config {
                eprintln!("hv: once it is up: ssh -F {} -p {} unbroken", config.display(), forward.port);
            }
        }
    }
}

impl Drive {
    /// QEMU's `-drive`. The driver of the file is named, so that a name with a colon is a file all the same.
    fn argument(&self, id: &str) -> Result<String> {
        let file = utf8(&self.file)?;
        let driver = if is_block_device(&self.file) { "host_device" } else { "file" };
        let access = match self.access {
            Access::Write => "",
            Access::ReadOnly => ",readonly=on",
            Access::Discard => ",snapshot=on",
        };
        let (format, locking) = (self.format.name(), if self.shared { ",file.locking=off" } else { "" });
        Ok(format!(
            "if=none,id={id},driver={format},file.driver={driver},file.filename={}{access}{locking}",
            double_commas(file)
        ))
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not valid UTF-8", path.display()))
}

fn is_block_device(file: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(file).is_ok_and(|data| data.file_type().is_block_device())
}

/// Refuses what QEMU's user network does not know.
fn check_net(options: &str) -> Result<()> {
    for option in options.split(',').filter(|_| !options.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        ensure!(
            NET_KEYS.contains(&key) && !value.is_empty(),
            "--net knows no `{option}`: write for example hostfwd=tcp:127.0.0.1:2222-:22 (or one of {})",
            NET_KEYS[1..].join(", ")
        );
        if key == "hostfwd" && Forward::of(value).is_none() {
            bail!("`{option}` forwards nothing: write hostfwd=tcp:[ADDRESS]:PORT-[ADDRESS]:PORT");
        }
    }
    Ok(())
}

/// Refuses options of `--net` that lead to programs and files of this host, for a machine that is saved: whoever resumes the
/// file may not be who has written them.
///
/// # Errors
/// The first such option, in a sentence.
pub fn check_net_of_file(options: &str) -> Result<()> {
    let keys = options.split(',').map(|option| option.split_once('=').map_or(option, |(key, _)| key));
    match keys.into_iter().find(|key| ["guestfwd", "tftp"].contains(key)) {
        Some(key) => bail!(
            "--net {key}=… is not taken from or put into a file of a saved machine, for it leads to programs or files of the host \
             that resumes it; save a machine without"
        ),
        None => Ok(()),
    }
}

/// A port of this host that leads to one of the guest's.
#[derive(Debug, PartialEq, Eq)]
struct Forward<'a> {
    protocol: &'a str,
    address: &'a str,
    port: u16,
    guest: u16,
}

impl<'a> Forward<'a> {
    /// Reads `tcp:127.0.0.1:2222-:22`; a protocol that is left out is TCP.
    fn of(value: &'a str) -> Option<Self> {
        let (host, guest) = value.split_once('-')?;
        let (protocol, host) = host.split_once(':')?;
        let (address, port) = host.split_once(':')?;
        let (_, guest) = guest.rsplit_once(':')?;
        let protocol = Some(protocol).filter(|protocol| ["", "tcp", "udp"].contains(protocol))?;
        Some(Self { protocol, address, port: port.parse().ok()?, guest: guest.parse().ok()? })
    }
}

/// Whether these options of a network forward a port of this host.
pub fn forwards(options: &str) -> bool {
    options.split(',').any(|option| option.starts_with("hostfwd="))
}

/// All that `hostfwd` says.
fn forwarded(options: &str) -> impl Iterator<Item = Forward<'_>> {
    options.split(',').filter_map(|option| Forward::of(option.strip_prefix("hostfwd=")?))
}

fn ensure_ports_are_free(options: &str) -> Result<()> {
    for forward in forwarded(options).filter(|forward| forward.protocol != "udp") {
        let address = if forward.address.is_empty() { "0.0.0.0" } else { forward.address };
        // QEMU opens it in a moment; here it is only asked whether it could.
        TcpListener::bind((address, forward.port)).with_context(|| {
            format!("port {} of this machine can't be forwarded to the guest: choose another", forward.port)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")
    }

    #[test]
    fn a_drive_names_its_driver() {
        let drive = |access, shared| Drive { file: "a:b,c".into(), format: Format::Qcow2, access, shared };
        let drive = |access, shared| drive(access, shared).argument("disk1").unwrap();
        let whole = "if=none,id=disk1,driver=qcow2,file.driver=file,file.filename=a:b,,c";
        assert_eq!(drive(Access::Write, false), whole);
        assert_eq!(drive(Access::ReadOnly, false), format!("{whole},readonly=on"));
        assert_eq!(drive(Access::Discard, false), format!("{whole},snapshot=on"));
        assert_eq!(drive(Access::Write, true), format!("{whole},file.locking=off"));
    }

    #[test]
    fn what_the_network_does_not_know_is_refused() {
        for options in
            ["", "hostfwd=tcp::2222-:22", "hostfwd=tcp:127.0.0.1:1-:22,hostfwd=udp::2-10.0.2.15:53,restrict=on"]
        {
            check_net(options).unwrap();
        }
        for options in [
            "2222",
            "hostfwd",
            "hostfwd=",
            "hostfwd=tcp::2222",
            "hostfwd=tcp::x-:22",
            "hostfwd=tcp::70000-:22",
            "id=x",
            ",",
            "hostfwd=icmp::1-:2",
        ] {
            assert!(check_net(options).is_err(), "{options}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let options = format!("hostfwd=tcp:127.0.0.1:{port}-:22");
        let sentence = ensure_ports_are_free(&options).unwrap_err().to_string();
        assert!(sentence.contains(&port.to_string()), "{sentence}");
        drop(taken);
        ensure_ports_are_free(&options).unwrap();
    }

    #[test]
    fn nothing_named_is_nothing_attached() {
        let devices = Devices::examine(None, &[], None, &[]).unwrap();
        assert!(devices.is_empty() && !devices.has_root());
        assert!(!Devices::examine(None, &[], Some(""), &[]).unwrap().is_empty());
        assert!(Devices::examine(None, &[], None, &["e1000".to_owned()]).is_err());
        let missing = Disk { file: "/no/such/disk".into(), read_only: false };
        assert!(Devices::examine(None, &[missing], None, &[]).is_err());
        let reader = Disk { file: file(), read_only: true };
        let twice = Devices::examine(Some(&Choice::File(file())), &[reader], None, &[]).unwrap_err();
        assert!(twice.to_string().contains("twice"), "{twice}");
    }
}
