//! The example that the engine's documentation walks through: it boots, protects a page under its guest, and counts.

use qemu::commands::quickstart::machine;
use qemu::images;
use qemu::run::Stop;
use system_tests::{run, workspace};

/// The console's lines of a run that passed.
fn passed(cpu: &str) -> Vec<String> {
    let image = images::quickstart(workspace()).expect("it builds");
    let outcome = run(&machine(&image, cpu));
    let lines: Vec<String> = outcome.console.lines().iter().map(|line| line.trim_end().to_owned()).collect();
    let well = matches!(outcome.stop, Stop::Exited(status) if status.success());
    assert!(well && lines.iter().any(|line| line == "end: passed"), "{:?}\n{}", outcome.stop, lines.join("\n"));
    assert!(lines.iter().any(|line| line == "2000 stores, 1 denied; one leaf again:"), "{}", lines.join("\n"));
    lines
}

#[test]
fn a_page_is_protected_with_no_window_at_bbm_level_2_and_with_four_at_level_0() {
    for (cpu, windows) in [("max", None), ("cortex-a53", Some("invalid-windows 4"))] {
        let lines = passed(cpu);
        let found = lines.iter().find(|line| line.starts_with("invalid-windows")).map(String::as_str);
        assert_eq!(found, windows, "{cpu}:\n{}", lines.join("\n"));
        for counter in ["split-1g 1", "split-2m 1", "collapse-1g 1", "collapse-2m 1", "fault-permission 1"] {
            assert!(lines.iter().any(|line| line == counter), "{cpu}: no {counter}:\n{}", lines.join("\n"));
        }
    }
}
