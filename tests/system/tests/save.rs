//! A running Linux is saved, and goes on in another process.

use qemu::images;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Output, Stdio};
use std::time::SystemTime;
use system_tests::{Scratch, scratch, stderr, stdout, turn_alone, workspace};

/// Runs `cargo hv` with these words, in its turn and alone.
pub fn hv(words: &[&str]) -> Output {
    let _turn = turn_alone();
    system_tests::hv(words).output().expect("cargo runs")
}

/// A worker: a counter that must neither skip nor go back; a file whose sum is known, through a pipe; floating point; a timer. It
/// prints each number once, the first one at once, or says what was wrong.
pub fn worker(last: u32) -> String {
    format!(
        "echo 0; head -c 1000000 /dev/urandom >/tmp/file; sum=$(sha256sum </tmp/file); n=0
        while [ $n -lt {last} ]; do
            kill -0 ${{checker:-$$}} || {{ echo the other program is gone; exit 5; }}
            [ \"$(cat /tmp/file | cat | sha256sum)\" = \"$sum\" ] || {{ echo wrong sum; exit 3; }}
            [ \"$(awk 'BEGIN {{ x = 0; for (i = 1; i <= 1000; i++) x += 1 / i; printf \"%.9f\", x }}')\" = 7.485470861 ] ||
                {{ echo wrong float; exit 4; }}
            usleep 20000; n=$((n + 1)); echo $n
        done; exit 9"
    )
}

/// A worker that does not end.
pub fn endless() -> String {
    worker(u32::MAX)
}

/// The same beside a program that checks its registers, time and a pipe, and says what is wrong; and the words that bring it.
fn endless_beside_checks() -> (String, [String; 2]) {
    let program = images::program(workspace(), "save-worker").expect("it builds");
    let add = ["--add".to_owned(), format!("{}:/save-worker", program.display())];
    (format!("/save-worker & checker=$!; {}", endless()), add)
}

/// What the worker prints.
pub fn numbers(last: u32) -> String {
    (0..=last).map(|number| format!("{number}\n")).collect()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Saves a worker in the middle, and lets it go on: what both have printed is what it prints.
fn goes_on(options: &[&str], seconds: &str) {
    const LAST: u32 = 60;
    let scratch = scratch();
    let file = scratch.path("saved");
    let command = worker(LAST);
    let words = ["linux", "--memory", "512M", "--save", text(&file), "--save-when", seconds, "--run", &command];
    let saved = hv(&[&words[..], options].concat());
    let first = stdout(&saved);
    assert_eq!(saved.status.code(), Some(0), "{first}\n{}", stderr(&saved));
    let (numbers_before, told) = first.rsplit_once("saved: ").unwrap_or_else(|| panic!("{first}"));
    assert!(told.starts_with(text(&file)) && told.trim_end().ends_with(" pages"), "{first}");
    let resumed = hv(&["resume", text(&file)]);
    let whole = numbers_before.to_owned() + &stdout(&resumed);
    assert_eq!(resumed.status.code(), Some(9), "{whole}\n{}", stderr(&resumed));
    // Where the source has ended a line that the guest had not, the destination begins it anew.
    assert_eq!(whole, numbers(LAST), "{}", stderr(&resumed));
    assert!(numbers_before.len() < whole.len(), "it was done before it was saved");
}

#[test]
#[ignore = "long"]
fn a_worker_goes_on_1_cpu() {
    goes_on(&["--smp", "1"], "1.3");
}

#[test]
fn a_worker_goes_on_4_cpus_cortex_a76() {
    goes_on(&["--smp", "4", "--cpu", "cortex-a76"], "1.7");
}

#[test]
fn a_worker_goes_on_2_cpus_cortex_a72_gicv2() {
    goes_on(&["--smp", "2", "--cpu", "cortex-a72", "--gic", "2"], "1.1");
}

/// A guest at its end takes another command, as often as it is resumed.
fn saved_at_its_end(scratch: &Scratch) -> PathBuf {
    let file = scratch.path("saved");
    let saved = hv(&["linux", "--memory", "512M", "--save", text(&file), "--run", "echo 41 >/tmp/n; cat /tmp/n"]);
    assert_eq!(saved.status.code(), Some(0), "{}", stderr(&saved));
    let out = stdout(&saved);
    assert!(out.starts_with(&format!("41\nsaved: {}, ", text(&file))), "{out}");
    file
}

#[test]
fn a_guest_at_its_end_takes_another_command_and_a_damaged_one_none() {
    let scratch = scratch();
    let file = saved_at_its_end(&scratch);
    for status in [7, 8] {
        let command = format!("echo $(($(cat /tmp/n) + 1)); echo oops >&2; exit {status}");
        let resumed = hv(&["resume", text(&file), "--run", &command]);
        assert_eq!((resumed.status.code(), &stdout(&resumed)[..]), (Some(status), "42\n"), "{}", stderr(&resumed));
        assert!(stderr(&resumed).contains("oops\n"));
    }
    let without = hv(&["resume", text(&file)]);
    assert!(stderr(&without).contains("give it another one with --run"), "{}", stderr(&without));

    // Nothing is started from what is not whole: it does not even come to QEMU.
    let whole = std::fs::read(&file).unwrap();
    let refused = |contents: &[u8], why: &str| {
        let damaged = scratch.file("damaged", contents);
        let refused = hv(&["resume", text(&damaged), "--run", "true", "--qemu", "/bin/false"]);
        let told = stderr(&refused);
        assert_eq!(refused.status.code(), Some(125), "{told}");
        assert!(told.contains(why), "{why}: {told}");
    };
    refused(&whole[..whole.len() / 2], "cut off");
    refused(b"", "no saved machine");
    refused(&[&b"\x7fELF"[..], &whole[4..]].concat(), "no saved machine");
    for place in [3, 9, 20, 5000, whole.len() / 3, whole.len() - 4000] {
        let mut flipped = whole.clone();
        flipped[place] ^= 0x10;
        refused(&flipped, "");
    }
}

/// A disk and a network go on with their guest, which finds what it has written; a disk that was written since is refused.
#[test]
fn a_guest_goes_on_with_its_disk_and_network() {
    let scratch = scratch();
    let (file, disk) = (scratch.path("saved"), scratch.file("disk", &vec![0; 4 << 20]));
    let write = "head -c 1000000 /dev/urandom >/tmp/f; cat /tmp/f >/dev/vda; sync; md5sum </tmp/f";
    let options = ["--memory", "512M", "--disk", text(&disk), "--net"];
    let saved = hv(&[&["linux", "--save", text(&file), "--run", write], &options[..]].concat());
    let out = stdout(&saved);
    let (sum, _) = out.split_once("saved: ").unwrap_or_else(|| panic!("{out}\n{}", stderr(&saved)));
    let read = "echo 3 >/proc/sys/vm/drop_caches; head -c 1000000 /dev/vda | md5sum
                ping -c 1 -W 9 10.0.2.2 >/dev/null && echo pong";
    let resumed = hv(&["resume", text(&file), "--run", read]);
    assert_eq!(stdout(&resumed), format!("{sum}pong\n"), "{}", stderr(&resumed));
    std::fs::write(&disk, vec![1; 4 << 20]).unwrap();
    let refused = hv(&["resume", text(&file), "--run", read]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(stderr(&refused).contains("was written since the guest was saved"), "{}", stderr(&refused));
}

#[test]
fn a_save_that_lets_the_guest_run_on_or_fails_harms_nothing() {
    let scratch = scratch();
    let file = scratch.path("saved");
    let command = worker(30);
    let words = ["linux", "--memory", "512M", "--save", text(&file), "--save-when", "1", "--save-and-go", "--run"];
    let saved = hv(&[&words[..], &[&command]].concat());
    let out = stdout(&saved);
    assert_eq!(saved.status.code(), Some(9), "{out}\n{}", stderr(&saved));
    assert!(out.starts_with(&(numbers(30) + "saved: ")), "{out}\n{}", stderr(&saved));
    assert_eq!(hv(&["resume", text(&file)]).status.code(), Some(9));
}

#[test]
fn what_cannot_be_saved_is_refused_up_front() {
    let scratch = scratch();
    let file = scratch.path("saved");
    for (options, why) in [
        (&["--grant-dma", "virtio-rng-device"][..], "--grant-dma"),
        (&["--oracle"], "--oracle"),
        (&["--firmware", "uefi"], "--firmware"),
        (&["--cpu", "max,mte=on"], "FEAT_MTE"),
        (&["--manager", "off"], "--manager off"),
        (&["--rootfs", "debian"], "--rootfs"),
    ] {
        let refused = hv(&[&["linux", "--run", "true", "--save", text(&file)], options].concat());
        assert_eq!(refused.status.code(), Some(125), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    assert!(!file.exists());
}

/// A run of `cargo hv` whose worker's numbers are read while it counts. Its worker need not come to an end: nothing depends on when
/// that would be.
pub struct Counting {
    child: Child,
    out: BufReader<ChildStdout>,
    said: PathBuf,
    pub next: u32,
}

impl Counting {
    /// Runs these words, with a worker that goes on with the number `next`.
    pub fn begin(scratch: &Scratch, words: &[&str], next: u32) -> Self {
        let said = scratch.path("said");
        let mut command = system_tests::hv(words);
        command.stdout(Stdio::piped()).stderr(File::create(&said).expect("the build folder is writable"));
        let mut child = command.spawn().expect("cargo runs");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, out, said, next }
    }

    /// What was written to standard error so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.said).expect("it was made")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a pipe can be read");
        line
    }

    fn is_next(&mut self, line: &str) {
        assert_eq!(line, format!("{}\n", self.next), "{}", self.said());
        self.next += 1;
    }

    /// Reads the next number, which must be the right one. Says no when there are no more.
    pub fn counts(&mut self) -> bool {
        let line = self.line();
        if !line.is_empty() {
            self.is_next(&line);
        }
        !line.is_empty()
    }

    /// Reads numbers up to a line that begins so, which is returned.
    fn counts_up_to(&mut self, begin: &str) -> String {
        loop {
            let line = self.line();
            if line.starts_with(begin) {
                return line;
            }
            self.is_next(&line);
        }
    }

    /// Reads numbers until this was said, and some more.
    pub fn counts_beyond(&mut self, said: &str) {
        const MORE: u32 = 3;
        while !self.said().contains(said) {
            assert!(self.counts(), "it ended before it said \"{said}\": {}", self.said());
        }
        let last = self.next + MORE;
        while self.next < last {
            assert!(self.counts(), "it said \"{said}\" and does not go on: {}", self.said());
        }
    }

    /// Ends it, and returns what it has said.
    pub fn end(mut self) -> String {
        // A line that was begun before is cut off.
        let child = Pid::from_child(&self.child);
        kill_process(child, Signal::INT).expect("it runs");
        self.wait();
        self.said()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it was started")
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // After a test that has failed nothing is to run on.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn a_guest_is_saved_when_it_is_asked_for() {
    let (_turn, scratch) = (turn_alone(), scratch());
    let file = scratch.path("saved");
    let words = ["linux", "--memory", "256M", "--save", text(&file), "--save-when", "asked", "--run"];
    let mut asked = Counting::begin(&scratch, &[&words[..], &[&endless()]].concat(), 0);
    asked.counts_beyond("kill -USR1 ");
    let said = asked.said();
    let number = said.rsplit_once("kill -USR1 ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
    let tool = Pid::from_raw(number.expect("a process's number")).expect("it is not 0");
    kill_process(tool, Signal::USR1).expect("it runs");
    let last = asked.counts_up_to("saved: ");
    assert!(last.starts_with(&format!("saved: {}, ", text(&file))), "{last}");
    assert_eq!(asked.wait().code(), Some(0), "{}", asked.said());
    let mut resumed = Counting::begin(&scratch, &["resume", text(&file)], asked.next);
    resumed.counts_beyond("");
    resumed.end();
}

/// Saves a guest so often, at random moments, each time where the last save goes on. Each number comes once, no check fails, and at the
/// end it still works.
fn saved_again_and_again(options: &[&str], saves: usize, random: &mut u64) {
    let scratch = scratch();
    let file = scratch.path("saved");
    let (command, add) = endless_beside_checks();
    let mut next = 0;
    for save in 0..saves {
        // xorshift64
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let when = format!("{}.{:02}", *random % 3, *random / 3 % 100);
        let again = ["--save", text(&file), "--save-when", &when];
        let begin = ["linux", "--memory", "256M", "--run", &command, &add[0], &add[1]];
        let words = if save == 0 {
            [&begin[..], options, &again].concat()
        } else {
            [&["resume", text(&file)][..], &again].concat()
        };
        let saved = hv(&words);
        let (out, told) = (stdout(&saved), stderr(&saved));
        assert_eq!(saved.status.code(), Some(0), "{options:?}, save {save} at {when}: {out}\n{told}");
        let (numbers, _) = out.rsplit_once("saved: ").unwrap_or_else(|| panic!("{out}\n{told}"));
        for line in numbers.lines() {
            assert_eq!(line, next.to_string(), "{options:?}, save {save} at {when}: {out}\n{told}");
            next += 1;
        }
    }
    let _turn = turn_alone();
    let mut resumed = Counting::begin(&scratch, &["resume", text(&file)], next);
    resumed.counts_beyond("");
    resumed.end();
    println!("{options:?}: {saves} saves, {} numbers", next);
}

#[test]
fn a_guest_that_goes_on_is_saved_again() {
    saved_again_and_again(&["--smp", "2"], 2, &mut 42);
}

/// As many as `SAVES` says on each machine, 10 without it. The random moments follow from `SAVE_SEED`.
#[test]
#[ignore = "long"]
fn a_hundred_saves_at_random_moments() {
    let variable = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let saves = variable("SAVES").unwrap_or(10) as usize;
    let time = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64);
    let mut random = variable("SAVE_SEED").unwrap_or(time).max(1);
    println!("SAVE_SEED={random}");
    for (cpu, gic, smps) in [
        ("max", "3", &["1", "2", "4"][..]),
        ("cortex-a76", "3", &["1", "2", "4"]),
        ("cortex-a72", "3", &["1", "2", "4"]),
        ("cortex-a72", "2", &["1", "2"]),
    ] {
        for smp in smps {
            saved_again_and_again(&["--cpu", cpu, "--gic", gic, "--smp", smp], saves, &mut random);
        }
    }
}
