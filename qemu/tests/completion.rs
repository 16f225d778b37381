//! What a shell makes of `cargo hv completion`, and what `--version` says.

use std::process::Command;

fn hv(words: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_hv")).args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_cargo_hv() {
    let script = hv(&["completion", "bash"]);
    for (words, function, wanted) in [
        ("cargo hv lin", "_cargo_hv cargo lin hv", "linux"),
        ("cargo hv linux --prot", "_cargo_hv cargo --prot linux", "--protect --protect-late"),
        ("hv payl", "_hv hv payl hv", "payload"),
    ] {
        let last = words.split(' ').count() - 1;
        let ask = format!("{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; {function}; echo \"${{COMPREPLY[*]}}\"");
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), wanted, "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_shell_gets_a_script() {
    for (shell, word) in [("zsh", "#compdef hv"), ("fish", "complete -c hv")] {
        assert!(hv(&["completion", shell]).contains(word), "{shell}");
    }
}

#[test]
fn the_version_has_the_checkout_s_commit() {
    let commit =
        Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let text = hv(&["--version"]);
    assert!(text.starts_with("hv 0."), "{text}");
    // A source archive has no commits.
    if let Some(commit) = commit.ok().filter(|output| output.status.success()) {
        assert!(text.contains(String::from_utf8(commit.stdout).unwrap().trim()), "{text}");
    }
}
