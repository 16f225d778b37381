//! Getting packages through the system's own `apt`: installed where the tool may, or unpacked into a private folder.

use crate::progress::Step;
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether this system has `apt-get` and `dpkg`.
pub fn is_available() -> bool {
    ["apt-get", "dpkg"].iter().all(|program| find_program(program).is_some())
}

/// Looks a program up in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// How commands are run as root: directly, through `sudo` without a password, or not at all (`None`).
pub fn root_prefix() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    sudo.is_ok_and(|output| output.status.success()).then_some(&["sudo", "-n"])
}

/// Installs packages on the system.
///
/// # Errors
/// If the tool may not, the packages don't exist, or `apt-get` fails; the sentence says what to run by hand.
pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !is_available() {
        bail!("this system has no apt-get; install what Debian calls {}", packages.join(", "));
    }
    let Some(prefix) = root_prefix() else {
        bail!("installing packages needs root; run `sudo {by_hand}`");
    };
    let as_root = |args: &[&str]| {
        let mut words = prefix.iter().chain(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]).chain(args);
        let mut command = Command::new(words.next().expect("`env` at least"));
        command.args(words);
        command
    };
    let install = |extra: &[&'static str]| {
        let mut args = vec!["install", "--no-install-recommends", "-y", "-q"];
        args.extend(extra);
        args.extend(packages);
        args
    };
    // A fresh machine may have no lists, an old one lists of files that are gone, or of a compiler that is too old. Where
    // they can't be fetched (an archive is out of reach), what is there may still do.
    let step = Step::begin("Updating the system's package lists");
    match checked(&mut as_root(&["update", "-q"])) {
        Ok(_) => step.done("done"),
        Err(error) => {
            drop(step);
            eprintln!("hv: {error:#}");
        }
    }
    let uris = checked(&mut as_root(&install(&["--print-uris", "-qq"])));
    let size = download_size(&uris.with_context(|| format!("can't install; try `{by_hand}`"))?);
    let step = Step::begin(format!("Installing {} ({} to download)", packages.join(" "), mega(size)));
    checked(&mut as_root(&install(&[]))).with_context(|| format!("can't install; try `{by_hand}`"))?;
    step.done("installed");
    Ok(())
}

/// Whether packages have a candidate in the system's lists (on a machine without lists: unknown, so `true`).
pub fn may_have(package: &str) -> bool {
    let Ok(output) = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let no_lists = fs::read_dir("/var/lib/apt/lists")
        .map_or(true, |folder| !folder.flatten().any(|entry| entry.file_name().to_string_lossy().contains("Packages")));
    no_lists || (text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

/// Packages that are unpacked, not installed: from the system's archives or others, but with lists and downloads of their own.
/// The system's configuration is not touched, and root is not needed.
#[derive(Debug)]
pub struct Foreign {
    folder: PathBuf,
    config: PathBuf,
    /// What the lists are of, for people.
    lists: &'static str,
}

/// The archive with packages that are newer than Debian 12.
const BACKPORTS: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian \
                         bookworm-backports main\n";

impl Foreign {
    /// A private apt for `arm64`, below `target/hv/apt`; its archives are the system's, or those in `HV_APT_SOURCES`.
    ///
    /// # Errors
    /// If there is no apt, or the folder can't be made.
    pub fn arm64(workspace: &Workspace) -> Result<Self> {
        let sources = std::env::var_os("HV_APT_SOURCES").map(PathBuf::from);
        let sources = sources.map(|sources| {
            fs::canonicalize(&sources)
                .with_context(|| format!("HV_APT_SOURCES names {}, which can't be found", sources.display()))
        });
        Self::new(workspace.folder("apt")?, "arm64", sources.transpose()?.as_deref(), "arm64 packages (about 15 MB)")
    }

    /// A private apt for this machine's architecture with Debian 12's backports, below `target/hv/apt-backports`.
    ///
    /// # Errors
    /// If there is no apt, or the folder can't be made.
    pub fn backports(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.folder("apt-backports")?;
        let sources = folder.join("sources.list");
        write_whole(&sources, BACKPORTS.as_bytes())?;
        let own = checked(Command::new("dpkg").arg("--print-architecture"))?;
        Self::new(folder, own.trim(), Some(&sources), "Debian's backports (about 1 MB)")
    }

    fn new(folder: PathBuf, architecture: &str, sources: Option<&Path>, lists: &'static str) -> Result<Self> {
        if !is_available() {
            bail!("this system has no apt-get to fetch it with");
        }
        for sub in ["lists/partial", "cache/archives/partial", "debs", "state"] {
            fs::create_dir_all(folder.join(sub)).with_context(|| format!("can't create {}", folder.display()))?;
        }
        let config = folder.join("apt.conf");
        let path = folder.display();
        // Hooks of the host (clean-up in containers, software centres) are not for this.
        let mut text = format!(
            "APT::Architecture \"{architecture}\";\n#clear APT::Architectures;\nAPT::Architectures {{ \"{architecture}\"; }};\n\
             Dir::State \"{path}/state\";\nDir::State::Lists \"{path}/lists\";\nDir::State::status \"/dev/null\";\n\
             Dir::Cache \"{path}/cache\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\nAPT::Sandbox::User \"root\";\n\
             #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n"
        );
        if let Some(sources) = sources {
            text += &format!("Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\n", sources.display());
        }
        write_whole(&config, text.as_bytes())?;
        Ok(Self { folder, config, lists })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C").current_dir(self.folder.join("debs"));
        command
    }

    /// Fetches the lists of the archives.
    ///
    /// # Errors
    /// If that fails: no network, or an archive without arm64.
    pub fn update(&self) -> Result<()> {
        let step = Step::begin(format!("Fetching the lists of {}", self.lists));
        checked(self.command("apt-get").args(["update", "-q"])).context(
            "can't fetch the lists of packages. If this system's archives have no arm64 (as on Ubuntu for PCs), \
             name a sources.list that does in HV_APT_SOURCES, or pass a kernel with --kernel",
        )?;
        step.done("done");
        Ok(())
    }

    /// Names of the packages that match a regular expression.
    ///
    /// # Errors
    /// If `apt-cache` fails.
    pub fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let output = checked(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(output.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them together into the folder `destination`, which is there whole or not at all.
    ///
    /// # Errors
    /// If a package can't be fetched or unpacked.
    pub fn unpack(&self, packages: &[&str], destination: &Path) -> Result<()> {
        let names = packages.join(" and ");
        let uris = checked(self.command("apt-get").args(["download", "--print-uris", "-qq"]).args(packages))
            .with_context(|| format!("can't find {names}"))?;
        let step = Step::begin(format!("Downloading {names} ({})", mega(download_size(&uris))));
        let debs = self.folder.join("debs");
        for entry in fs::read_dir(&debs)?.flatten() {
            // Leftovers of an interrupted run; apt resumes what is in its own `partial`.
            fs::remove_file(entry.path()).with_context(|| format!("can't remove {}", entry.path().display()))?;
        }
        checked(self.command("apt-get").args(["download", "-q"]).args(packages))
            .with_context(|| format!("can't download {names}"))?;
        let temporary = destination.with_extension("partial");
        if temporary.exists() {
            fs::remove_dir_all(&temporary).with_context(|| format!("can't remove {}", temporary.display()))?;
        }
        for entry in fs::read_dir(&debs)?.flatten() {
            checked(Command::new("dpkg").arg("-x").arg(entry.path()).arg(&temporary)).context("can't unpack")?;
            fs::remove_file(entry.path()).with_context(|| format!("can't remove {}", entry.path().display()))?;
        }
        if destination.exists() {
            fs::remove_dir_all(destination).with_context(|| format!("can't remove {}", destination.display()))?;
        }
        fs::rename(&temporary, destination)
            .with_context(|| format!("can't rename {} into place", temporary.display()))?;
        step.done("unpacked");
        Ok(())
    }

    /// Downloads packages with all that they depend on (recommendations left out) into the folder `destination`, as if nothing
    /// were installed. Returns the files in apt's order of installation.
    ///
    /// # Errors
    /// If a package is not there, or can't be fetched.
    pub fn download_all(&self, packages: &[&str], destination: &Path) -> Result<Vec<PathBuf>> {
        let partial = destination.join("partial");
        fs::create_dir_all(&partial).with_context(|| format!("can't create {}", partial.display()))?;
        let install = |word: &str| {
            let mut command = self.command("apt-get");
            command.args(["install", "--no-install-recommends", "-y", "-qq", word, "-o", "Debug::NoLocking=1", "-o"]);
            command.arg(format!("Dir::Cache::archives={}", destination.display())).args(packages);
            command
        };
        let uris = checked(&mut install("--print-uris")).context("the archives do not have all of the packages")?;
        let names: Vec<&str> = uris.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let size = mega(download_size(&uris));
        let step = Step::begin(format!("Downloading {} arm64 packages ({size})", names.len()));
        checked(&mut install("--download-only")).context("can't download the packages")?;
        step.done("downloaded");
        Ok(names.into_iter().map(|name| destination.join(name)).collect())
    }

    /// The archives that the lists came from, as lines of a `sources.list`, without passwords.
    ///
    /// # Errors
    /// If `apt-get` fails.
    pub fn sources(&self) -> Result<String> {
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        let targets =
            checked(self.command("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
        let mut lines: Vec<String> =
            targets.lines().map(|target| format!("deb {}\n", without_password(target))).collect();
        lines.sort();
        lines.dedup();
        Ok(lines.concat())
    }
}

/// A URI that may name a user (`http://user:password@host/`), without.
fn without_password(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.to_owned() };
    let host = rest.find('/').unwrap_or(rest.len());
    let begin = rest[..host].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}://{}", &rest[begin..])
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// If it can't be run or fails; the error ends with the last lines that it wrote.
pub fn checked(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&checked_bytes(command)?).into_owned())
}

/// The same for output that is no text.
///
/// # Errors
/// As for [`checked`].
pub fn checked_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("can't run {name}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    bail!("{name} failed ({}):\n{}", output.status, lines[lines.len().saturating_sub(12)..].join("\n"))
}

/// Sums up the sizes in `apt-get --print-uris`'s lines: `'URI' FILE SIZE HASH`.
fn download_size(uris: &str) -> u64 {
    uris.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

fn mega(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_summed_up() {
        let uris = "'a://b/c.deb' c_1%3a1_arm64.deb 822236 SHA256:49\n'a://b/d.deb' d.deb 21347940 SHA256:00\n";
        assert_eq!(download_size(uris), 22_170_176);
        assert_eq!(mega(22_170_176), "22.2 MB");
    }

    #[test]
    fn passwords_are_not_passed_on() {
        assert_eq!(without_password("http://a:b@c.d/e main"), "http://c.d/e main");
        assert_eq!(without_password("http://c.d/e@f main"), "http://c.d/e@f main");
        assert_eq!(without_password("file:/e main"), "file:/e main");
    }

    #[test]
    fn a_failing_command_shows_why() {
        let error = checked(Command::new("sh").args(["-c", "echo reason >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("reason") && error.contains('3'), "{error}");
        assert!(checked(&mut Command::new("surely-no-such-program")).is_err());
    }
}
