//! The workspace's own house: the floors of each crate, in one table.

use house::fault::Fault;
use house::floors::{self, Floors};
use house::length::{self, Exception};
use house::source::{self, Sources};
use std::path::{Path, PathBuf};

/// A crate, and how its imports are judged.
struct Crate {
    /// Its package's folder.
    folder: &'static str,
    /// Its root file in that folder.
    root: &'static str,
    /// What is judged.
    judged: Judged,
}

/// What is judged of a crate's imports.
#[derive(Clone, Copy)]
enum Judged {
    /// Floors, the top one first, and circles.
    Floors(Floors<'static>),
    /// Circles alone: the crate is too small for floors.
    Circles,
}

use Judged::*;

const CRATES: &[Crate] = &[
    Crate {
        folder: "stage2",
        root: "src/lib.rs",
        judged: Floors(&[
            &["dirty"],
            &["mapping", "fault"],
            &["resize"],
            &["table"],
            &["platform", "bitmap"],
            &["arch"],
        ]),
    },
    Crate { folder: "hypervisor", root: "src/lib.rs", judged: Circles },
    Crate {
        folder: "hypervisor",
        root: "src/main.rs",
        judged: Floors(&[
            &["el2"],
            &["el2::boot"],
            &["el2::exits"],
            &["el2::manager"],
            &["el2::crash"],
            &["el2::saving"],
            &["el2::mediation"],
            &["el2::guest_memory"],
            &["el2::base"],
        ]),
    },
    Crate {
        folder: "virtio-mediation",
        root: "src/lib.rs",
        judged: Floors(&[
            &["device"],
            &["queue"],
            &["saved"],
            &["rings"],
            &["environment", "features", "registers", "unusable"],
            &["violation"],
        ]),
    },
    Crate { folder: "hypervisor/abi", root: "src/lib.rs", judged: Circles },
    Crate {
        folder: "guest-payload",
        root: "src/main.rs",
        judged: Floors(&[&["suite", "bench"], &["calls"], &["options"], &["machine"]]),
    },
    Crate {
        folder: "qemu",
        root: "src/lib.rs",
        judged: Floors(&[
            &["commands"],
            &["bench", "boards", "payload", "report"],
            &["cli"],
            &["manager"],
            &["ending", "events", "images", "initramfs", "code_size", "uefi", "devices", "saved"],
            &["run", "gdb"],
            &["machine"],
            &["placement"],
            &["added", "guest_kernel", "setup", "flatten", "live"],
            &["console", "disk", "newc", "pe", "size", "symbols", "workspace", "feed", "interrupt", "kallsyms"],
            &["progress", "status_line"],
            &["output"],
            &["temporary"],
        ]),
    },
    Crate { folder: "qemu", root: "src/main.rs", judged: Circles },
    Crate {
        folder: "tlb-model",
        root: "src/lib.rs",
        judged: Floors(&[
            &["record", "model", "instruction"],
            &["census", "invalidate"],
            &["walker", "tlb"],
            &["registers", "lru", "counts"],
            &["memory", "sizes"],
        ]),
    },
    Crate { folder: "tlb-plugin", root: "src/lib.rs", judged: Floors(&[&["machine"], &["ram", "api", "settings"]]) },
    Crate {
        folder: "tlb-workload",
        root: "src/main.rs",
        judged: Floors(&[&["cipher", "hash_table", "sequential"], &["marker", "system"]]),
    },
    Crate {
        folder: "tests/house",
        root: "src/lib.rs",
        judged: Floors(&[&["floors", "length"], &["imports"], &["modules"], &["fault", "source"]]),
    },
    Crate { folder: "tests/loom", root: "src/lib.rs", judged: Circles },
    Crate { folder: "tests/native", root: "src/lib.rs", judged: Circles },
    Crate { folder: "tests/no-panic", root: "src/main.rs", judged: Circles },
    Crate { folder: "tests/oracle", root: "src/lib.rs", judged: Circles },
    Crate { folder: "tests/save-worker", root: "src/main.rs", judged: Floors(&[&["checks"], &["system"]]) },
    Crate { folder: "tests/system", root: "src/lib.rs", judged: Circles },
    Crate { folder: "examples/quickstart", root: "src/main.rs", judged: Circles },
    Crate { folder: "examples/secure-partition", root: "src/lib.rs", judged: Circles },
    Crate { folder: "examples/secure-partition", root: "src/spm/main.rs", judged: Circles },
    Crate { folder: "examples/secure-partition", root: "src/partition/main.rs", judged: Circles },
];

/// What may be longer than others.
const EXCEPTIONS: &[Exception] = &[Exception {
    file: "tests/oracle/tests/mistakes.rs",
    function: Some("mistakes"),
    reason: "a table of data: the mistakes, one after the other",
}];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(folder: &str, extensions: &[&str]) -> Sources {
    source::read(&root(), folder, extensions).expect("the workspace can be read")
}

/// Fails with the faults, a line each.
#[track_caller]
fn assert_none(faults: &[Fault]) {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n{} faults\n", lines.join("\n"), lines.len());
}

#[test]
fn imports_run_downwards() {
    let mut faults = Vec::new();
    for Crate { folder, root, judged } in CRATES {
        let floors = match judged {
            Floors(floors) => Some(*floors),
            Circles => None,
        };
        let sources = read(&format!("{folder}/src"), &["rs"]);
        faults.extend(
            floors::judge(&sources, &format!("{folder}/{root}"), floors).unwrap_or_else(|error| panic!("{error}")),
        );
    }
    assert_none(&faults);
}

/// Of a room on two floors, one would count and the other mislead.
#[test]
fn no_room_stands_twice() {
    for Crate { folder, judged, .. } in CRATES {
        let Floors(floors) = judged else { continue };
        let mut rooms: Vec<&str> = floors.iter().flat_map(|floor| floor.iter().copied()).collect();
        rooms.sort_unstable();
        assert!(rooms.windows(2).all(|pair| pair[0] != pair[1]), "{folder}: {rooms:?}");
    }
}

/// A crate that the table does not have would not be judged.
#[test]
fn every_package_is_in_the_table() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("there is a workspace");
    let (_, members) = manifest.split_once("members = [").expect("it has members");
    let members = members.split_once(']').expect("the list ends").0;
    for member in members.split('"').skip(1).step_by(2) {
        assert!(CRATES.iter().any(|one| one.folder == member), "{member} is not in the table of tests/house");
        let folder = format!("{member}/src");
        let roots: Vec<String> =
            CRATES.iter().filter(|one| one.folder == member).map(|one| format!("{member}/{}", one.root)).collect();
        let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
        let sources = read(&folder, &["rs"]);
        assert_none(&floors::strays(&sources, &roots).unwrap_or_else(|error| panic!("{error}")));
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut sources = Sources::new();
    for Crate { folder, .. } in CRATES {
        for part in ["src", "tests", "benches"] {
            sources.extend(read(&format!("{folder}/{part}"), &["rs", "S"]));
        }
    }
    assert!(EXCEPTIONS.iter().all(|exception| !exception.reason.is_empty()));
    let faults = length::judge(&sources, EXCEPTIONS).unwrap_or_else(|error| panic!("{error}"));
    assert_none(&faults);
}
