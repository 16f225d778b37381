//! A running Linux moves from one machine to another while it works, with what it has; and whatever fails, it is somewhere and once.

use crate::save::{Counting, endless, hv, numbers, text, worker};
use system_tests::{Scratch, scratch, stderr, stdout, turn_alone};

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
