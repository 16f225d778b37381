//! What the packages' scripts would have made, and what makes a laboratory's machine of it.

use super::accounts;
use super::files::{fresh, write_file};
use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Files of the image: path, mode, contents.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/hostname", 0o644, "unbroken\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n10.0.2.15 unbroken\n::1 localhost ip6-localhost ip6-loopback\n"),
    // The label is image.rs's. The initramfs has mounted it already, and no check precedes that: a layer is thrown away.
    ("etc/fstab", 0o644, "LABEL=unbroken / ext4 errors=remount-ro 0 0\n"),
    // QEMU's user network, whose addresses are always these.
    ("etc/resolv.conf", 0o644, "nameserver 10.0.2.3\n"),
    (
        "etc/systemd/network/10-user.network",
        0o644,
        "[Match]\nName=eth*\n\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nDNS=10.0.2.3\n\
         LinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    ),
    (
        "etc/systemd/system/systemd-networkd-wait-online.service.d/only-with-a-network.conf",
        0o644,
        "[Unit]\nConditionPathExistsGlob=/sys/class/net/eth*\n",
    ),
    (
        "etc/systemd/system/serial-getty@.service.d/autologin.conf",
        0o644,
        "# A laboratory's machine: whoever has its console is root.\n[Service]\nExecStart=\n\
         ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM\n",
    ),
    ("etc/shells", 0o644, "/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/dash\n/usr/bin/dash\n"),
    ("etc/environment", 0o644, ""),
    ("etc/default/locale", 0o644, "LANG=C.UTF-8\n"),
    // What pam-auth-update makes of its only profile, `unix`.
    (
        "etc/pam.d/common-auth",
        0o644,
        "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n",
    ),
    (
        "etc/pam.d/common-account",
        0o644,
        "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\n\
         account required pam_permit.so\n",
    ),
    (
        "etc/pam.d/common-password",
        0o644,
        "password [success=1 default=ignore] pam_unix.so obscure yescrypt\npassword requisite pam_deny.so\n\
         password required pam_permit.so\n",
    ),
    ("etc/pam.d/common-session", 0o644, "session required pam_permit.so\nsession required pam_unix.so\n"),
    (
        "etc/pam.d/common-session-noninteractive",
        0o644,
        "session required pam_permit.so\nsession required pam_unix.so\n",
    ),
];

/// Files that the packages have as examples, and where they belong.
const COPIES: &[(&str, &str)] = &[
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ("usr/share/base-files/profile", "etc/profile"),
    ("usr/share/base-files/motd", "etc/motd"),
    ("usr/share/base-files/dot.profile", "root/.profile"),
    ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ("usr/share/openssh/sshd_config", "etc/ssh/sshd_config"),
];

/// Symbolic links: path, target.
const LINKS: &[(&str, &str)] = &[
    ("etc/mtab", "../proc/self/mounts"),
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("usr/bin/awk", "mawk"),
    ("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target"),
    ("etc/systemd/system/dbus-org.freedesktop.network1.service", "/lib/systemd/system/systemd-networkd.service"),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/lib/systemd/system/systemd-networkd.service",
    ),
    ("etc/systemd/system/sockets.target.wants/systemd-networkd.socket", "/lib/systemd/system/systemd-networkd.socket"),
    (
        "etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service",
        "/lib/systemd/system/systemd-networkd-wait-online.service",
    ),
];

/// The same, where the image has keys.
const LINKS_FOR_SSH: &[(&str, &str)] =
    &[("etc/systemd/system/multi-user.target.wants/ssh.service", "/lib/systemd/system/ssh.service")];

/// Folders and their modes: those of base-files' script, and those that are not for everybody.
const FOLDERS: &[(&str, u32)] = &[
    ("root", 0o700),
    ("root/.ssh", 0o700),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("srv", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/lib", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/local/share", 0o755),
    ("var/lib/misc", 0o755),
    ("var/mail", 0o2775),
];

/// Feeds all that is written to a hasher, so that another text makes another image.
pub fn hash(hasher: &mut impl Hasher) {
    (FILES, COPIES, LINKS, LINKS_FOR_SSH, FOLDERS).hash(hasher);
}

/// Writes what an unpacked system lacks into the folder `root`; `sources` is its `sources.list`.
///
/// # Errors
/// If a file can't be written, or a package lacks what it should have brought.
pub fn configure(root: &Path, sources: &str) -> Result<()> {
    accounts::write(root)?;
    for (path, mode, text) in FILES {
        write_file(root, path, *mode, text)?;
    }
    for (from, to) in COPIES {
        let from = root.join(from);
        let text = fs::read_to_string(&from).with_context(|| format!("can't read {}", from.display()))?;
        write_file(root, to, 0o644, &text)?;
    }
    write_file(root, "etc/apt/sources.list", 0o644, sources)?;
    let mut id = [0; 16];
    let mut random = fs::File::open("/dev/urandom").context("can't open /dev/urandom")?;
    random.read_exact(&mut id).context("can't read /dev/urandom")?;
    write_file(root, "etc/machine-id", 0o444, &format!("{:032x}\n", u128::from_ne_bytes(id)))?;
    link(root, LINKS)
}

/// The last touches, behind which nothing is written any more.
///
/// # Errors
/// If a file can't be written.
pub fn finish(root: &Path, has_keys: bool) -> Result<()> {
    if has_keys {
        link(root, LINKS_FOR_SSH)?;
    }
    for (path, mode) in FOLDERS {
        let folder = root.join(path);
        fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
        fs::set_permissions(&folder, Permissions::from_mode(*mode))?;
    }
    // They are younger than /usr: without them each boot of a layer that is thrown away would make the hardware database,
    // the journal's catalogue and the accounts anew (ConditionNeedsUpdate of systemd.unit(5)).
    for path in ["etc/.updated", "var/.updated"] {
        write_file(root, path, 0o644, "")?;
    }
    Ok(())
}

fn link(root: &Path, links: &[(&str, &str)]) -> Result<()> {
    for (path, target) in links {
        let link = fresh(root, path)?;
        symlink(target, &link).with_context(|| format!("can't write {}", link.display()))?;
    }
    Ok(())
}
