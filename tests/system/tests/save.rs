//! A running Linux is saved, goes on in another process, and moves from one machine to another while it works.

use qemu::images;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Output, Stdio};
use std::time::SystemTime;
use system_tests::{Scratch, scratch, stderr, stdout, turn_alone, workspace};

/// Runs `cargo hv` with these words, in its turn and alone.
fn hv(words: &[&str]) -> Output {
    let _turn = turn_alone();
    system_tests::hv(words).output().expect("cargo runs")
}

/// A worker: a counter that must neither skip nor go back; a file whose sum is known, through a pipe; floating point; a timer. It
/// prints each number once, the first one at once, or says what was wrong.
fn worker(last: u32) -> String {
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
fn endless() -> String {
    worker(u32::MAX)
}

/// The same beside a program that checks its registers, time and a pipe, and says what is wrong; and the words that bring it.
fn endless_beside_checks() -> (String, [String; 2]) {
    let program = images::program(workspace(), "save-worker").expect("it builds");
    let add = ["--add".to_owned(), format!("{}:/save-worker", program.display())];
    (format!("/save-worker & checker=$!; {}", endless()), add)
}

/// What the worker prints.
fn numbers(last: u32) -> String {
    (0..=last).map(|number| format!("{number}\n")).collect()
}

fn text(path: &Path) -> &str {
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
#[ignore = "long"]
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
#[ignore = "long"]
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
struct Counting {
    child: Child,
    out: BufReader<ChildStdout>,
    said: PathBuf,
    next: u32,
}

impl Counting {
    /// Runs these words, with a worker that goes on with the number `next`.
    fn begin(scratch: &Scratch, words: &[&str], next: u32) -> Self {
        let said = scratch.path("said");
        let mut command = system_tests::hv(words);
        command.stdout(Stdio::piped()).stderr(File::create(&said).expect("the build folder is writable"));
        let mut child = command.spawn().expect("cargo runs");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, out, said, next }
    }

    /// What was written to standard error so far.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).expect("it was made")
    }

    /// Reads the next number, which must be the right one. Says no when there are no more.
    fn counts(&mut self) -> bool {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a pipe can be read");
        if line.is_empty() {
            return false;
        }
        assert_eq!(line, format!("{}\n", self.next), "{}", self.said());
        self.next += 1;
        true
    }

    /// Reads numbers until this was said, and some more.
    fn counts_beyond(&mut self, said: &str) {
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
    fn end(mut self) -> String {
        // A line that was begun before is cut off.
        let child = Pid::from_child(&self.child);
        kill_process(child, Signal::INT).expect("it runs");
        self.wait();
        self.said()
    }

    fn wait(&mut self) -> ExitStatus {
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

/// The words that move a guest which does this.
fn moves<'w>(command: &'w str, options: &[&'w str]) -> Vec<&'w str> {
    [&["migrate", "--memory", "256M", "--run", command], options].concat()
}

#[test]
fn a_worker_moves_while_it_works() {
    let moved = hv(&moves(&worker(80), &["--smp", "2", "--timeout", "900"]));
    let (out, told) = (stdout(&moved), stderr(&moved));
    assert_eq!(moved.status.code(), Some(9), "{out}\n{told}");
    assert!(out.starts_with(&(numbers(80) + "migrate: equal")), "{out}\n{told}");
    assert!(told.contains("downtime: "), "{told}");
}

/// A management core that did not give its turn to others would have a guest boot for many minutes.
#[test]
#[ignore = "long"]
fn a_downtime_is_counted_in_instructions() {
    let (_turn, scratch) = (turn_alone(), scratch());
    let mut moved = Counting::begin(&scratch, &moves(&endless(), &["--icount", "--max-downtime", "1000000"]), 0);
    moved.counts_beyond("goes on on the other machine");
    let told = moved.end();
    assert!(told.contains(" instructions to send them"), "{told}");
}

#[test]
fn a_writer_that_is_too_fast_is_told_of_and_runs_on() {
    let (_turn, scratch) = (turn_alone(), scratch());
    let command = format!("(while :; do head -c 40000000 /dev/zero >/tmp/w; done) & {}", endless());
    // The first copy takes long enough for any guest to write a page. A later round is as short as the host makes it: a guest whose
    // host is busy elsewhere writes nothing meanwhile, and converges.
    let mut moved = Counting::begin(&scratch, &moves(&command, &["--max-downtime", "0", "--rounds", "0"]), 0);
    moved.counts_beyond("does not converge");
    moved.end();
}

/// A move in which this fails. No more pages may be left than `most`.
fn fails(scratch: &Scratch, fail: &str, most: &str) -> Counting {
    Counting::begin(scratch, &moves(&endless(), &["--fail", fail, "--max-downtime", most]), 0)
}

/// Up to the hand-over the guest runs on where it was. Each number comes once.
fn runs_on_where_it_was(fail: &str, most: &str) {
    let (_turn, scratch) = (turn_alone(), scratch());
    let mut moved = fails(&scratch, fail, most);
    moved.counts_beyond("; the guest runs on where it is");
    assert!(moved.said().contains("not moved: "), "{fail}: {}", moved.said());
    moved.end();
}

/// Once everything is in the file and the source is let go, the guest is whole in the file. Each number comes once.
fn is_whole_in_the_file(fail: &str) {
    let (_turn, scratch) = (turn_alone(), scratch());
    let mut moved = fails(&scratch, fail, "1000000");
    while moved.counts() {}
    assert_eq!(moved.wait().code(), Some(1), "{fail}: {}", moved.said());
    let (told, next) = (moved.said(), moved.next);
    let (_, file) = told.rsplit_once("cargo hv resume ").unwrap_or_else(|| panic!("{fail}: {told}"));
    let file = file.trim();
    assert!(next > 0, "{fail}: the worker has not begun");
    let mut resumed = Counting::begin(&scratch, &["resume", file], next);
    resumed.counts_beyond("");
    resumed.end();
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_damaged_file_is_found_while_the_guest_is_stopped() {
    runs_on_where_it_was("file@load", "1000000");
}

#[test]
fn a_destination_that_ends_once_the_source_is_let_go_leaves_the_file() {
    is_whole_in_the_file("destination@release");
}

/// Either side ends at each step, or the file is full.
#[test]
#[ignore = "long"]
fn whatever_fails_the_guest_is_somewhere_and_once() {
    runs_on_where_it_was("destination@round", "1");
    for fail in ["destination@stop", "destination@load", "full@all"] {
        runs_on_where_it_was(fail, "1000000");
    }
    is_whole_in_the_file("destination@go");
    // The source that ends by itself once everything is on the other side is as good as let go.
    let (_turn, scratch) = (turn_alone(), scratch());
    let mut moved = fails(&scratch, "source@release", "1000000");
    moved.counts_beyond("goes on on the other machine");
    moved.end();
}

/// The status of a guest that was not moved is its command's, unless that is 0.
#[test]
fn a_guest_that_was_not_moved_ends_where_it_was() {
    for (status, shown) in [(0, 1), (9, 9)] {
        let command = format!("echo 1; sleep 1; echo 2; exit {status}");
        let moved = hv(&moves(&command, &["--fail", "destination@all"]));
        assert_eq!((moved.status.code(), &stdout(&moved)[..]), (Some(shown), "1\n2\n"), "{}", stderr(&moved));
        assert!(stderr(&moved).contains("not moved: "), "{}", stderr(&moved));
    }
}

/// A disk and a network move with their guest. Each number is written to a sector of its own and read back, and stands there when all
/// is over.
#[test]
fn a_guest_moves_with_its_disk_and_network() {
    let (_turn, scratch) = (turn_alone(), scratch());
    let disk = scratch.file("disk", &vec![0; 4 << 20]);
    let command = "n=0; while :; do
        echo $n | dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2>/dev/null; echo 1 >/proc/sys/vm/drop_caches
        [ \"$(dd if=/dev/vda bs=512 skip=$n count=1 2>/dev/null | head -n 1)\" = $n ] || echo wrong sector
        ping -c 1 -W 9 10.0.2.2 >/dev/null || echo no network
        echo $n; n=$((n + 1))
    done";
    let options = ["--disk", text(&disk), "--net", "--max-downtime", "1000000"];
    let mut moved = Counting::begin(&scratch, &moves(command, &options), 0);
    moved.counts_beyond("goes on on the other machine");
    let sectors = moved.next;
    moved.end();
    let contents = std::fs::read(&disk).unwrap();
    for (number, sector) in (0..sectors).zip(contents.chunks(512)) {
        let expected = format!("{number}\n");
        assert!(sector.starts_with(expected.as_bytes()), "{number}: {:?}", &sector[..8]);
    }
}
