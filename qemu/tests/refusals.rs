//! Every refusal of the tool's, and of the hypervisor's options: it names the value, the reason and the next step, has the
//! right exit status, and comes before anything is built, fetched or booted.

use hypervisor::options::Options;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What the parser of the command line refuses.
const PARSER: i32 = 2;
/// What can't work together or on this machine.
const CANNOT_WORK: i32 = 125;

/// A refusal: the words, the exit status, and the value, the reason and the next step that stand in its sentence. `@` before
/// a name makes it a path in the test's folder.
type Case = (&'static [&'static str], i32, [&'static str; 3]);

/// Values that say nothing by themselves.
const VALUES: &[Case] = &[
    (&["linux", "--memory", "much"], PARSER, ["'much'", "not an amount of memory", "512M, 1.5G or 4G"]),
    (&["linux", "--memory", "0"], PARSER, ["'0'", "without memory can't run", "as in 512M"]),
    (&["linux", "--memory", "99999999999T"], PARSER, ["'99999999999T'", "more than 64 bits", "write less"]),
    (&["linux", "--timeout", "5q"], PARSER, ["'5q'", "not a time", "90, 5m or 1.5h"]),
    (&["linux", "--timeout", "0"], PARSER, ["'0'", "out of range", "from 1 s to a day"]),
    (&["payload", "--timeout", "2d"], PARSER, ["'2d'", "not a time", "90, 5m or 1.5h"]),
    (&["bench", "--timeout", "x"], PARSER, ["'x'", "not a time", "90, 5m or 1.5h"]),
    (&["secure-partition", "--timeout", "-1"], PARSER, ["'-1'", "unexpected argument", "--help"]),
    (&["linux", "--dirty", "auto", "--every", "1ms"], PARSER, ["'1ms'", "out of range", "from 0.01 s"]),
    (&["linux", "--gic", "4"], PARSER, ["'4'", "version 2 or version 3", "write 2 or 3"]),
    (&["linux", "--smp", "0"], PARSER, ["'0'", "not a number of CPUs", "1 or more"]),
    (&["linux", "--smp", "many"], PARSER, ["'many'", "not a number of CPUs", "1 or more"]),
    (&["linux", "--cpus", "4"], PARSER, ["'--cpus", "unexpected argument", "'--smp'"]),
    (&["linux", "--dirty", "soft"], PARSER, ["'soft'", "possible values", "write-protect"]),
    (&["linux", "--kernel", "debian-new"], PARSER, ["'debian-new'", "not a series", "as in debian-6.12"]),
    (&["linux", "--firmware", "bios"], PARSER, ["'bios'", "possible values", "uefi"]),
    (&["linux", "--granule", "8k"], PARSER, ["'8k'", "possible values", "16k"]),
    (&["linux", "--dirty", "auto", "--rounds", "0"], PARSER, ["'0'", "not a count", "1 or more"]),
    (&["linux", "--split-storm", "x"], PARSER, ["'x'", "not a count", "1 or more"]),
    (
        &["linux", "--protect", "here"],
        PARSER,
        ["'here'", "not a protection", "write START-END:deny or START-END:report"],
    ),
    (
        &["linux", "--protect", "0x40g00000-0x41000000:deny"],
        PARSER,
        ["`0x40g00000`", "not a hexadecimal address", "write one"],
    ),
    (&["linux", "--protect", "0x40800800-0x41000000:deny"], PARSER, ["0x40800800", "page size", "write 0x40800000"]),
    (
        &["linux", "--protect", "0x41000000-0x40800000:deny"],
        PARSER,
        ["0x41000000-0x40800000", "ends where it begins", "write"],
    ),
    (&["linux", "--add", ":/x"], PARSER, ["':/x'", "no file before the colon", "write FILE or FILE:PATH"]),
    (&["linux", "--add", "x:/a/../b"], PARSER, ["/a/../b", "not a plain absolute path", "write it without"]),
    (&["linux", "--add", "x:/hv/init"], PARSER, ["'x:/hv/init'", "the tool's own folder", "choose another path"]),
    (&["linux", "--add", "."], PARSER, ["'.'", "needs a path in the guest", "as in .:/src"]),
    (&["completion", "ksh"], PARSER, ["'ksh'", "possible values", "fish"]),
    (&["payload", "--filter", "a b"], PARSER, ["'a b'", "one word", "without spaces"]),
    (&["fly"], PARSER, ["'fly'", "unrecognized subcommand", "--help"]),
    (&["linux", "--no-such-option"], PARSER, ["'--no-such-option'", "unexpected argument", "--help"]),
];

/// Options that do not go together.
const TOGETHER: &[Case] = &[
    (&["linux", "--raw"], PARSER, ["--kernel", "required", "--help"]),
    (&["payload", "--raw"], PARSER, ["--image", "required", "--help"]),
    (&["linux", "--dirty", "auto", "--churn", "1"], PARSER, ["'--churn <SEED>'", "cannot be used with", "--help"]),
    (&["payload", "--matrix", "--cpu", "max"], PARSER, ["'--cpu", "cannot be used with", "--help"]),
    (&["secure-partition", "--size", "--moves", "3"], PARSER, ["'--moves", "cannot be used with", "--help"]),
    (&["bench", "--native", "--timeout", "9"], PARSER, ["'--timeout", "cannot be used with", "--help"]),
    (&["linux", "--run", "x", "--out", "@out"], CANNOT_WORK, ["--out", "no effect", "add --dirty auto or --protect"]),
    (
        &["linux", "--run", "x", "--out", "@out", "--churn", "1"],
        CANNOT_WORK,
        ["--out", "no effect", "add --dirty auto"],
    ),
    (&["linux", "--run", "x", "--rounds", "2"], CANNOT_WORK, ["--rounds", "no effect", "add --dirty auto or --audit"]),
    (&["linux", "--run", "x", "--every", "2"], CANNOT_WORK, ["--every", "no effect", "leave it out"]),
    (
        &["linux", "--run", "x", "--dirty", "write-protect", "--granularity", "block"],
        CANNOT_WORK,
        ["--granularity", "no effect", "add --dirty hardware"],
    ),
    (
        &["linux", "--run", "x", "--granularity", "page"],
        CANNOT_WORK,
        ["--granularity", "no effect", "add --dirty hardware"],
    ),
    (
        &["linux", "--run", "x", "--net", "guestfwd=tcp:10.0.2.9:80-cmd:x", "--save", "@new"],
        CANNOT_WORK,
        ["--net guestfwd=", "programs or files of the host", "save a machine without"],
    ),
    (
        &["linux", "--run", "x", "--dirty", "hardware", "--eager"],
        CANNOT_WORK,
        ["--eager", "without write protection", "add --dirty write-protect"],
    ),
    (
        &["linux", "--run", "x", "--dirty", "auto", "--manager", "off"],
        CANNOT_WORK,
        ["--manager off", "leaves no CPU", "leave it out"],
    ),
    (
        &["linux", "--run", "x", "--audit", "--icount"],
        CANNOT_WORK,
        ["--icount", "the management core never rests", "leave --icount out"],
    ),
    (
        &["linux", "--initrd", "@initrd", "--protect", "0x40800000-0x40801000:deny", "--protect-late"],
        CANNOT_WORK,
        ["--protect-late", "waits for a command", "give one with --run"],
    ),
    (
        &["linux", "--run", "x", "--oracle", "--smp", "5"],
        CANNOT_WORK,
        ["--smp 5", "models 5 CPUs, the management core among them", "use --smp 4"],
    ),
    (
        &["linux", "--run", "x", "--granule", "16k", "--oracle"],
        CANNOT_WORK,
        ["--granule 16k", "record is one of tables with pages of 4 KiB", "leave one of them out"],
    ),
    (
        &["linux", "--run", "x", "--granule", "64k", "--protect", "0x40801000-0x40a00000:deny"],
        CANNOT_WORK,
        ["0x40801000-0x40a00000", "not made of whole pages of --granule 64k", "write 0x40800000-0x40a00000"],
    ),
    (
        &["linux", "--run", "x", "--rootfs", "debian", "--add", "@text"],
        CANNOT_WORK,
        ["--add", "no effect with --rootfs", "put the files on a disk"],
    ),
    (&["linux"], CANNOT_WORK, ["standard input", "not a terminal", "--run 'uname -a'"]),
    (&["secure-partition", "--bbm", "nt"], CANNOT_WORK, ["--bbm nt", "no CPU that QEMU models has", "use --bbm auto"]),
];

/// Machines that there can't be.
const MACHINES: &[Case] = &[
    (
        &["linux", "--run", "x", "--cpu", "cortex-a9"],
        CANNOT_WORK,
        ["--cpu cortex-a9", "not a 64-bit CPU model", "use one of"],
    ),
    (&["payload", "--cpu", "z80"], CANNOT_WORK, ["--cpu z80", "not a 64-bit CPU model", "use one of"]),
    (&["secure-partition", "--cpu", "z80"], CANNOT_WORK, ["--cpu z80", "not a 64-bit CPU model", "use one of"]),
    (
        &["linux", "--run", "x", "--gic", "2", "--smp", "9"],
        CANNOT_WORK,
        ["--smp 9", "GICv2, which serves 8 CPUs", "use --gic 3"],
    ),
    (
        &["linux", "--run", "x", "--gic", "2", "--smp", "8", "--dirty", "auto"],
        CANNOT_WORK,
        ["--smp 8", "8 CPUs: 7 for the guest and one for management", "use --gic 3, or --smp 7"],
    ),
    (&["linux", "--run", "x", "--smp", "65"], CANNOT_WORK, ["--smp 65", "runs on 64 CPUs", "use --smp 64 or less"]),
    (&["payload", "--gic", "2", "--smp", "100"], CANNOT_WORK, ["--smp 100", "runs on 8 CPUs", "use --smp 8 or less"]),
    (
        &["linux", "--run", "x", "--memory", "64M"],
        CANNOT_WORK,
        ["--memory 64M", "too little", "use --memory 192M or more"],
    ),
    (
        &["linux", "--kernel", "@image", "--initrd", "@large", "--memory", "192M"],
        CANNOT_WORK,
        ["--memory 192M", "too little for this kernel and initramfs", "use --memory "],
    ),
    (
        &["linux", "--run", "x", "--dirty", "hardware", "--cpu", "cortex-a72"],
        CANNOT_WORK,
        ["--cpu cortex-a72", "FEAT_HAFDBS", "use --dirty auto or --cpu max"],
    ),
    (
        &["linux", "--run", "x", "--protect", "0x1000-0x2000:deny"],
        CANNOT_WORK,
        ["--protect 0x1000-0x2000", "outside the machine's RAM, which is 0x40000000-0x80000000", "choose a range"],
    ),
    (
        &["linux", "--run", "x", "--memory", "512M", "--protect", "0x5fe00000-0x60200000:report"],
        CANNOT_WORK,
        ["0x5fe00000-0x60200000", "which is 0x40000000-0x60000000 with --memory 512M", "choose a range"],
    ),
    (
        &["linux", "--run", "x", "--grant-dma", "e1000"],
        CANNOT_WORK,
        ["e1000", "not a virtio-mmio device", "virtio-rng-device"],
    ),
    (
        &[
            "linux",
            "--run",
            "x",
            "--grant-dma=virtio-rng-device",
            "--grant-dma=virtio-rng-device",
            "--grant-dma=virtio-rng-device",
            "--grant-dma=virtio-rng-device",
        ],
        CANNOT_WORK,
        ["4 devices", "too many for --grant-dma", "grant 3 at most"],
    ),
    (
        &["linux", "--run", "x", "--qemu", "@no-such-qemu"],
        CANNOT_WORK,
        ["no-such-qemu", "names no QEMU that runs", "name another"],
    ),
    (&["linux", "--run", "x", "--qemu", "@initrd"], CANNOT_WORK, ["initrd", "names no QEMU that runs", "name another"]),
];

/// Files that are missing, or are not what they should be.
const FILES: &[Case] = &[
    (
        &["linux", "--run", "x", "--kernel", "@missing"],
        CANNOT_WORK,
        ["missing", "can't open the kernel", "name a file that is there"],
    ),
    (&["linux", "--run", "x", "--kernel", "@"], CANNOT_WORK, ["the kernel", "a folder", "pass an arm64 Image"]),
    (&["linux", "--run", "x", "--kernel", "@text"], CANNOT_WORK, ["text", "it is a text file", "pass the Image"]),
    (&["linux", "--run", "x", "--kernel", "@binary"], CANNOT_WORK, ["binary", "at offset 56", "add --raw"]),
    (&["linux", "--run", "x", "--kernel", "@empty"], CANNOT_WORK, ["empty", "empty file", "pass an arm64 Image"]),
    (&["linux", "--run", "x", "--kernel", "@elf"], CANNOT_WORK, ["elf", "an ELF file", "not vmlinux"]),
    (&["linux", "--run", "x", "--kernel", "@gz"], CANNOT_WORK, ["gz", "compressed with gzip", "gzip -dc"]),
    (&["linux", "--run", "x", "--kernel", "@cut"], CANNOT_WORK, ["cut", "8192 bytes, and 4096 are there", "again"]),
    (
        &["linux", "--run", "x", "--kernel", "@image", "--raw"],
        CANNOT_WORK,
        ["image", "is an arm64 Image", "leave --raw out"],
    ),
    (
        &["linux", "--run", "x", "--kernel", "debian-6.12", "--raw"],
        CANNOT_WORK,
        ["--raw", "no effect on Debian's kernels", "leave it out"],
    ),
    (
        &["linux", "--kernel", "@impossible", "--initrd", "@initrd"],
        CANNOT_WORK,
        ["18446744073709551615 bytes", "impossible size", "again"],
    ),
    (&["payload", "--image", "@text"], CANNOT_WORK, ["text", "it is a text file", "pass the Image"]),
    (&["payload", "--image", "@elf"], CANNOT_WORK, ["elf", "an ELF file", "pass the raw arm64 Image"]),
    (&["bench", "--kvm", "--kernel", "@text"], CANNOT_WORK, ["text", "it is a text file", "pass the Image"]),
    (&["linux", "--initrd", "@missing"], CANNOT_WORK, ["missing", "--initrd", "name a file that can"]),
    (
        &["linux", "--run", "x", "--add", "@missing"],
        CANNOT_WORK,
        ["missing", "can't be read", "name a file or a folder"],
    ),
    (&["linux", "--initrd", "@"], CANNOT_WORK, ["--initrd", "not a file", "name one"]),
    (
        &["linux", "--run", "x", "--dirty", "auto", "--out", "@text/out"],
        CANNOT_WORK,
        ["text/out", "can't be written to", "name another folder"],
    ),
    (&["payload", "--junit", "@missing/x.xml"], CANNOT_WORK, ["x.xml", "can't be written", "name another path"]),
    (&["replay", "@missing"], CANNOT_WORK, ["missing", "can't", "No such file"]),
    (&["report", "@missing"], CANNOT_WORK, ["missing", "there is no folder", "--out DIR"]),
    (&["report", "@target"], CANNOT_WORK, ["target", "holds no recorded run", "`--out` makes one"]),
    (&["trees", "@missing"], CANNOT_WORK, ["missing", "can't", "No such file"]),
    (&["test", "no-such-check"], CANNOT_WORK, ["no-such-check", "there is no check", "--list"]),
];

/// A folder with the files that the cases name, and a QEMU that is none.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("hv-{test}-{}", std::process::id()));
        fs::create_dir_all(folder.join("target")).unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
        write("text", "This is no kernel.\n".repeat(300).as_bytes());
        write("binary", &[0xff; 4096]);
        write("empty", b"");
        write("elf", &[b"\x7fELF\x02\x01\x01".to_vec(), vec![0; 4096]].concat());
        write("gz", &[0x1f, 0x8b, 8, 0, 0, 0]);
        write("initrd", &[0; 512]);
        write("image", &image(0x10_0000));
        write("impossible", &image(u64::MAX));
        write("cut", &efi_image(8192));
        fs::File::create(folder.join("large")).unwrap().set_len(400 << 20).unwrap();
        write(
            "qemu",
            b"#!/bin/sh\ncase \"$*\" in --version) echo QEMU emulator version 7.2.0 ;; *) echo Available CPUs:; \
            for cpu in max cortex-a72 cortex-a9; do echo \"  $cpu\"; done ;; esac\n",
        );
        fs::set_permissions(folder.join("qemu"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// Runs the tool without a terminal.
    fn hv(&self, words: &[&str]) -> Output {
        let path = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.0.join(name).into_os_string(),
            None => word.into(),
        };
        Command::new(env!("CARGO_BIN_EXE_hv"))
            .args(words.iter().map(|word| path(word)))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
            .env("CARGO_TARGET_DIR", self.0.join("target"))
            .env("HV_QEMU", self.0.join("qemu"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The header of an Image that takes so many bytes, and a page.
fn image(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[16..24].copy_from_slice(&size.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

/// The first page of an Image that is an EFI application with a section up to `end`.
fn efi_image(end: u32) -> Vec<u8> {
    let mut bytes = image(0x10_0000);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0\x64\xaa\x01\0");
    // The optional header has 240 bytes, and says that it is PE32+ with 16 directories.
    put(0x40 + 20, &240_u16.to_le_bytes());
    put(0x40 + 24, &0x20b_u16.to_le_bytes());
    put(0x40 + 24 + 108, &16_u32.to_le_bytes());
    let section = 0x40 + 24 + 240;
    put(section, b".text");
    put(section + 16, &(end - 4096).to_le_bytes());
    put(section + 20, &4096_u32.to_le_bytes());
    bytes
}

#[test]
fn every_refusal_of_the_tool_says_what_why_and_what_to_do() {
    let folder = Folder::new("refusals");
    let mut faults = Vec::new();
    for (words, status, sentence) in [VALUES, TOGETHER, MACHINES, FILES].into_iter().flatten().copied() {
        let output = folder.hv(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() != Some(status) || !sentence.iter().all(|part| text.contains(part)) {
            faults.push(format!("{words:?}: {} instead of {status}, {sentence:?} in: {text}", output.status));
        }
        if !output.stdout.is_empty() {
            faults.push(format!("{words:?} writes to standard output"));
        }
        for made in ["hv/build", "hv/images", "hv/guest"] {
            if folder.0.join("target").join(made).exists() {
                faults.push(format!("{words:?} came after something was built or fetched: {made}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_refusal_of_the_hypervisor_s_options_says_what_and_what_may_stand_there() {
    for (word, value, next) in [
        ("lgo=info", "there is no option lgo=info", "log=off|error|warn|info|debug|trace"),
        ("log=loud", "log=loud", "off|error|warn|info|debug|trace"),
        ("bbm=2", "bbm=2", "auto|break|nt|direct"),
        ("grant-dma=x", "grant-dma=x", "ADDRESS in hexadecimal"),
        ("icount=yes", "icount=yes", "on|off"),
        ("crash=off", "crash=off", "panic|abort|overflow"),
        ("manager=1", "manager=1", "on|off"),
        ("hypercalls=", "hypercalls=", "on|off"),
        ("late-cpu=x", "late-cpu=x", "refuse|repaint"),
        ("weaken=x", "weaken=x", "MPIDR in hexadecimal"),
        ("drop-dirty=0", "drop-dirty=0", "NUMBER from 1"),
    ] {
        let sentence = Options::parse(word).unwrap_err().to_string();
        for part in ["the hypervisor's command line", value, next] {
            assert!(sentence.contains(part), "{word}: `{part}` is not in: {sentence}");
        }
    }
}

#[test]
fn an_empty_hv_qemu_is_one_that_is_not_set() {
    let folder = Folder::new("hv-qemu");
    let output = Command::new(env!("CARGO_BIN_EXE_hv"))
        .arg("doctor")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .env("CARGO_TARGET_DIR", folder.0.join("target"))
        .env("HV_QEMU", "")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(PARSER), "{text}");
    assert!(text.contains("QEMU"), "{text}");
}
