//! Users and groups: base-passwd's own, and those that the packages' scripts would have made.

use super::files::write_file;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A user of a service: name, number, number of its group, home.
const USERS: &[(&str, u32, u32, &str)] = &[
    ("_apt", 42, NOGROUP, "/nonexistent"),
    ("sshd", 996, NOGROUP, "/run/sshd"),
    ("messagebus", 997, 997, "/nonexistent"),
    ("systemd-network", 998, 998, "/"),
];
const NOGROUP: u32 = 65534;

/// Groups: of the users above, of udev's rules, of journald and of ssh-agent.
const GROUPS: &[(&str, u32)] = &[
    ("_ssh", 101),
    ("input", 102),
    ("sgx", 103),
    ("kvm", 104),
    ("render", 105),
    ("messagebus", 997),
    ("systemd-network", 998),
    ("systemd-journal", 999),
];

/// The day of passwords' last change, from 1970 on: one on which nothing has expired.
const DAY: u32 = 20_000;

/// The four files of `/etc`.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    passwd: String,
    shadow: String,
    group: String,
    gshadow: String,
}

/// Writes `passwd`, `shadow`, `group` and `gshadow`. Nobody has a password.
///
/// # Errors
/// If base-passwd's lists are missing, or the files can't be written.
pub fn write(root: &Path) -> Result<()> {
    let master = |name: &str| {
        let path = root.join("usr/share/base-passwd").join(name);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    };
    let files = files(&master("passwd.master")?, &master("group.master")?);
    for (name, mode, text) in [
        ("passwd", 0o644, &files.passwd),
        ("shadow", 0o600, &files.shadow),
        ("group", 0o644, &files.group),
        ("gshadow", 0o600, &files.gshadow),
    ] {
        write_file(root, &format!("etc/{name}"), mode, text)?;
    }
    Ok(())
}

/// What stands in the files, from what base-passwd has.
fn files(passwd_master: &str, group_master: &str) -> Files {
    // The master's second field is `*`; `x` says that the password's place is the shadow file.
    let shadowed = |text: &str| text.replace(":*:", ":x:");
    let (mut passwd, mut group) = (shadowed(passwd_master), shadowed(group_master));
    for (name, user, group, home) in USERS {
        let _ = writeln!(passwd, "{name}:x:{user}:{group}::{home}:/usr/sbin/nologin");
    }
    for (name, number) in GROUPS {
        let _ = writeln!(group, "{name}:x:{number}:");
    }
    let names = |text: &str, behind: &str| {
        text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| format!("{name}:*:{behind}\n")).collect()
    };
    Files { shadow: names(&passwd, &format!("{DAY}:0:99999:7:::")), gshadow: names(&group, ":"), passwd, group }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_a_password() {
        let files = files("root:*:0:0:root:/root:/bin/bash\n", "root:*:0:\ntty:*:5:\n");
        assert!(files.passwd.starts_with("root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534:"), "{}", files.passwd);
        assert!(files.shadow.starts_with("root:*:20000:0:99999:7:::\n_apt:*:20000:"), "{}", files.shadow);
        assert!(files.gshadow.starts_with("root:*::\ntty:*::\n_ssh:*::\n"), "{}", files.gshadow);
        assert!(files.shadow.lines().all(|line| line.contains(":*:")));
        assert_eq!(files.passwd.lines().count(), files.shadow.lines().count());
        assert_eq!(files.group.lines().count(), files.gshadow.lines().count());
    }

    #[test]
    fn numbers_are_nobody_else_s() {
        let numbers = |all: Vec<u32>| {
            let mut once = all.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), all.len());
        };
        numbers(USERS.iter().map(|user| user.1).collect());
        numbers(GROUPS.iter().map(|group| group.1).collect());
    }
}
