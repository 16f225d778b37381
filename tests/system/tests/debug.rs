//! `cargo hv debug`: gdb has the hypervisor's names where QEMU loads it and where it moves to, and the guest's.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use system_tests::workspace;

#[test]
fn breakpoints_by_name_follow_the_hypervisor_and_reach_the_guest() {
    if Command::new("gdb-multiarch").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: there is no gdb-multiarch");
        return;
    }
    let mut hv = Command::new(qemu::workspace::cargo())
        .args(["run", "--quiet", "--package", "qemu", "--bin", "hv", "--", "debug", "--payload", "--append", "list"])
        .args(["--timeout", "120"])
        .current_dir(workspace().root())
        .env("CARGO_TARGET_DIR", workspace().target())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo runs");
    let told = BufReader::new(hv.stderr.take().expect("it is piped"));
    let mut lines = told.lines().map_while(Result::ok);
    let script = lines.find_map(|line| line.split_once("gdb-multiarch -x ").map(|(_, script)| script.to_owned()));
    let script = script.expect("it says how to attach");
    // QEMU opens the socket that the script names a moment later.
    let text = std::fs::read_to_string(&script).expect("the script is there");
    let socket = text.lines().find_map(|line| line.strip_prefix("target remote ")).expect("it names the socket");
    while !std::path::Path::new(socket).exists() {
        assert!(hv.try_wait().expect("it can be asked").is_none(), "QEMU ended before gdb came");
        std::thread::yield_now();
    }
    let where_ = ["-ex", "continue", "-ex", "printf \"at %#lx\\n\", $pc", "-ex", "info symbol $pc"];
    let gdb = Command::new("gdb-multiarch")
        .args(["-q", "-nx", "-batch", "-x", &script, "-ex", "break primary_main"])
        // The hypervisor's, the moved hypervisor's, and the guest's.
        .args(where_)
        .args(where_)
        .args(where_)
        .args(["-ex", "monitor quit"])
        .stdin(Stdio::null())
        .output()
        .expect("gdb runs");
    let _ = lines.last();
    let status = hv.wait().expect("it ends");
    let said = String::from_utf8_lossy(&gdb.stdout).into_owned() + &String::from_utf8_lossy(&gdb.stderr);
    let places: Vec<u64> =
        said.lines().filter_map(|line| u64::from_str_radix(line.strip_prefix("at 0x")?, 16).ok()).collect();
    assert!(status.success(), "{said}");
    assert_eq!(places.len(), 3, "{said}");
    // QEMU loads to RAM's start; the end of RAM is 1 GiB further on, or more.
    assert!(places[0] < 0x4100_0000 && places[1] > places[0] + (512 << 20), "{places:x?}\n{said}");
    let guest = 0x4100_0000..places[1];
    assert!(guest.contains(&places[2]) && said.matches("primary_main + ").count() >= 3, "{places:x?}\n{said}");
}
