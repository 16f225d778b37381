//! The barrier sequences that the engine relies on, in Arm's own model of memory: `litmus/*.litmus`, run by herd7.
//!
//! Each file says what herd7 must observe, `Never` or `Sometimes`: with a barrier left out, the bad outcome must come up, or
//! the test would prove nothing. Where there is no herd7 (Debian: herdtools7), nothing is judged, and the test says so.
//! `HERD7` names another one than that in `PATH`.

use std::path::Path;
use std::process::Command;

#[test]
fn herd_agrees_with_the_barriers() {
    let herd = std::env::var("HERD7").unwrap_or_else(|_| "herd7".into());
    if Command::new(&herd).arg("-version").output().is_err() {
        eprintln!("SKIPPED: there is no {herd} (Debian: herdtools7), so the litmus tests are not run");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("litmus");
    let mut judged = 0;
    for file in std::fs::read_dir(&folder).expect("the folder is there") {
        let path = file.expect("it can be read").path();
        let test = std::fs::read_to_string(&path).expect("it can be read");
        let expected = test.split("(* expect: ").nth(1).and_then(|rest| rest.split(' ').next());
        let expected = expected.unwrap_or_else(|| panic!("{} does not say what to expect", path.display()));
        let output = Command::new(&herd).args(["-variant", "vmsa"]).arg(&path).output().expect("herd7 runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let observed = text.lines().find_map(|line| line.strip_prefix("Observation ")?.split(' ').nth(1));
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(observed, Some(expected), "{}:\n{text}{complaints}", path.display());
        judged += 1;
    }
    assert_eq!(judged, 9);
}
