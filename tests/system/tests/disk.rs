//! A guest with a disk, a root file system and a network: it comes up, ssh reaches it, and what it writes is what lies on the disk.

use qemu::setup::apt::find_program;
use qemu::setup::rootfs::Rootfs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use system_tests::{Scratch, hv_linux, scratch, stderr, stdout, turn_alone, workspace};

/// How long a guest may take to come up, on a busy host.
const LIMIT: Duration = Duration::from_secs(400);

/// One of e2fsprogs' programs, which are root's on most systems.
fn ext4(name: &str) -> Command {
    let path = find_program(name).unwrap_or_else(|| Path::new("/usr/sbin").join(name));
    Command::new(path)
}

/// What a program prints; it has to succeed.
fn printed(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// A new disk of so many MiB.
fn new_disk(scratch: &Scratch, mib: u64) -> PathBuf {
    let path = scratch.path("disk.img");
    std::fs::File::create(&path).and_then(|file| file.set_len(mib << 20)).expect("the build folder is writable");
    path
}

/// The sum, as `sha256sum` prints it, of a file on a disk that no guest uses any more.
fn sum_on(disk: &Path, scratch: &Scratch) -> String {
    let copy = scratch.path("copy");
    printed(ext4("debugfs").arg("-R").arg(format!("dump /data {}", copy.display())).arg(disk));
    let line = printed(Command::new("sha256sum").arg(&copy));
    line.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Debian comes up from a disk's image of the user's; a file of so many MiB on another disk has the same sum when it is written, when
/// it is mounted again, and on the host; both file systems are sound afterwards.
fn data_is_right(mib: u64) {
    let scratch = scratch();
    let root = scratch.path("root.img");
    let pristine = Rootfs::debian(workspace()).expect("the root file system can be made").image;
    printed(Command::new("cp").arg("--sparse=always").arg(&pristine).arg(&root));
    let disk = new_disk(&scratch, mib * 5 / 4 + 32);
    let shell = format!(
        "systemctl is-system-running --wait; apt-cache policy >/dev/null || echo no apt
         ip -br -4 address show eth0 | tr -s ' '
         mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/data bs=1M count={mib} status=none
         sha256sum </mnt/data
         umount /mnt && mount -o ro /dev/vdb /mnt && sha256sum </mnt/data
         echo kept >/root/kept; exit 7"
    );
    let [root_word, disk_word] = [&root, &disk].map(|path| path.to_str().expect("the path is UTF-8"));
    let output = hv_linux(&["--rootfs", root_word, "--disk", disk_word, "--net", "--smp", "2"], &shell);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(7), "{text}{}", stderr(&output));
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let [state, address, written, again] = lines[..] else { panic!("unexpected output: {text}") };
    assert_eq!((state, address), ("running", "eth0 UP 10.0.2.15/24"));
    assert_eq!(written, again);
    for file in [&root, &disk] {
        printed(ext4("e2fsck").arg("-fn").arg(file));
    }
    assert_eq!(sum_on(&disk, &scratch), written.split_whitespace().next().unwrap_or_default());
    assert_eq!(printed(ext4("debugfs").args(["-R", "cat /root/kept"]).arg(&root)), "kept\n");
}

#[test]
fn what_a_guest_writes_is_what_lies_on_its_disk() {
    data_is_right(16);
}

#[test]
#[ignore = "long"]
fn a_quarter_of_a_gib_too() {
    data_is_right(256);
}

/// A `cargo hv linux` whose console the test reads and types on.
struct Login {
    child: Child,
    pieces: Receiver<Vec<u8>>,
    seen: String,
}

impl Login {
    fn begin(options: &[&str]) -> Self {
        let mut command = Command::new(qemu::workspace::cargo());
        command.args(["run", "--quiet", "--package", "qemu", "--bin", "hv", "--", "linux", "--timeout", "500"]);
        command.args(options).current_dir(workspace().root()).env("CARGO_TARGET_DIR", workspace().target());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cargo runs");
        let mut stream = child.stdout.take().expect("a pipe was asked for");
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, pieces, seen: String::new() }
    }

    /// Reads until these words have come.
    fn wait_for(&mut self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.seen.contains(words) {
            match self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.seen += &String::from_utf8_lossy(&piece),
                Err(error) => panic!("no `{words}`: {error}\n{}", self.seen),
            }
        }
    }

    fn type_in(&mut self, keys: &str) {
        let input = self.child.stdin.as_mut().expect("a pipe was asked for");
        input.write_all(keys.as_bytes()).and_then(|()| input.flush()).expect("the guest listens");
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        // A test that has failed leaves no machine behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What ssh runs in the guest prints this.
fn over_ssh(config: &Path, port: u16, command: &str) -> String {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(config).args(["-o", "ConnectTimeout=120", "-p", &port.to_string(), "unbroken", command]);
    printed(&mut ssh)
}

#[test]
fn root_logs_in_on_the_console_and_by_ssh_and_the_image_stays_as_it_is() {
    let rootfs = Rootfs::debian(workspace()).expect("the root file system can be made");
    let sum = || printed(Command::new("sha256sum").arg(&rootfs.image));
    let before = sum();
    let _turn = turn_alone();
    let port =
        TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr()).expect("a port is free").port();
    let forward = format!("hostfwd=tcp:127.0.0.1:{port}-:22");
    let mut login = Login::begin(&["--rootfs", "debian", "--net", &forward, "--smp", "2"]);
    login.wait_for("login: root (automatic login)");
    login.wait_for("root@unbroken:~# ");
    // The answer differs from what is typed, which the terminal echoes. The wait is over when sshd is up.
    login.type_in("systemctl is-system-running --wait; echo up $((40 + 2)) | tee /root/note\r");
    login.wait_for("running");
    login.wait_for("up 42");
    match &rootfs.ssh_config {
        Some(config) if find_program("ssh").is_some() => {
            assert_eq!(over_ssh(config, port, "id -un; cat /root/note; findmnt -no FSTYPE /"), "root\nup 42\next4\n");
        }
        _ => eprintln!("no ssh from this host, which has no ssh client: skipped"),
    }
    login.type_in("poweroff\r");
    login.wait_for("[unbroken] end: power-off");
    assert!(login.child.wait().expect("the tool ends").success());
    assert_eq!(sum(), before, "the cached image was written to");
}

#[test]
fn the_busybox_guest_has_disks_and_a_network() {
    let scratch = scratch();
    let first = new_disk(&scratch, 1);
    let second = scratch.file("read.img", &[b'x'; 4096]);
    let words = [first.display().to_string(), format!("{},ro", second.display())];
    let shell =
        "cat /sys/block/vda/size; head -c 3 /dev/vdb; echo; echo written | dd of=/dev/vda conv=fsync 2>/dev/null
                 dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null || echo read-only
                 echo hello | nc -w 20 10.0.2.100 7";
    let net = "guestfwd=tcp:10.0.2.100:7-cmd:cat";
    let output = hv_linux(&["--disk", &words[0], "--disk", &words[1], "--net", net], shell);
    assert_eq!(stdout(&output), "2048\nxxx\nread-only\nhello\n", "{}", stderr(&output));
    let kept = std::fs::read(&first).expect("the disk is there");
    assert!(kept.starts_with(b"written\n") && kept.len() == 1 << 20);
    assert_eq!(std::fs::read(&second).expect("the disk is there"), [b'x'; 4096]);
}

#[test]
fn devices_that_can_not_be_are_told_before_anything_is_built() {
    let scratch = scratch();
    let empty = scratch.file("empty", b"").display().to_string();
    let packed = scratch.file("packed", b"\x1f\x8b\x08\0").display().to_string();
    let disk = new_disk(&scratch, 1).display().to_string();
    for (options, sentence) in [
        (&["--disk", "no-such-file"][..], "no-such-file"),
        (&["--disk", "/"], "folder"),
        (&["--disk", &empty], "truncate"),
        (&["--disk", &packed], "gzip"),
        (&["--disk", &disk, "--disk", &disk], "twice"),
        (&["--rootfs", "no-such-file"], "no-such-file"),
        (&["--net", "2222"], "hostfwd"),
        (&["--mediate", "e1000"], "e1000"),
    ] {
        let output = hv_linux(options, "true");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{options:?}: {text}");
        assert!(text.contains(sentence) && !text.contains("Building unbroken"), "{options:?}: {text}");
    }
}
