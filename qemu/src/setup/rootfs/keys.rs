//! Keys: the guest's own, by which a client knows it, and the one that lets the user in.

use super::files::write_file;
use crate::setup::apt::{checked, find_program};
use crate::workspace::write_whole;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What `ssh -F` is given, beside the image.
pub const SSH_CONFIG: &str = "ssh_config";
/// The user's key, beside the image.
const USER_KEY: &str = "id_ed25519";
/// The guest's key, in the image.
const HOST_KEY: &str = "etc/ssh/ssh_host_ed25519_key";
/// The guest's name for ssh.
const HOST: &str = "unbroken";

/// Makes both pairs of keys and what the client needs, in `folder`, which will be renamed to `whole`. Says whether this host
/// can make keys.
///
/// # Errors
/// If `ssh-keygen` fails, or a file can't be written.
pub fn make(folder: &Path, whole: &Path, root: &Path) -> Result<bool> {
    if find_program("ssh-keygen").is_none() {
        return Ok(false);
    }
    let user = folder.join(USER_KEY);
    let host = root.join(HOST_KEY);
    for (key, comment) in [(&user, "cargo-hv"), (&host, HOST)] {
        // ssh-keygen asks before it writes over a key.
        let _ = fs::remove_file(key);
        let mut command = Command::new("ssh-keygen");
        checked(command.args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(key)).context("no key")?;
    }
    let public = |key: &Path| {
        let path = key.with_extension("pub");
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    };
    write_file(root, "root/.ssh/authorized_keys", 0o600, &public(&user)?)?;
    write_whole(&folder.join("known_hosts"), format!("{HOST} {}", public(&host)?).as_bytes())?;
    write_whole(&folder.join(SSH_CONFIG), ssh_config(whole).as_bytes())?;
    Ok(true)
}

/// The client's settings: the host is known by its key, whichever port of this machine leads to it.
fn ssh_config(whole: &Path) -> String {
    let folder = whole.display();
    format!(
        "Host {HOST}\n  HostName 127.0.0.1\n  User root\n  HostKeyAlias {HOST}\n  IdentityFile \"{folder}/{USER_KEY}\"\n  \
         IdentitiesOnly yes\n  UserKnownHostsFile \"{folder}/known_hosts\"\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
    )
}
