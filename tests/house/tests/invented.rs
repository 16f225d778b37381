//! Each kind of fault is seen, in small invented crates, and what is no fault is not.

use house::fault::Fault;
use house::floors::{Floors, judge, strays};
use house::length::{self, Exception};
use house::source::Sources;

const FLOORS: Floors<'_> = &[&["top"], &["left", "right"], &["ground"]];

fn sources(files: &[(&str, &str)]) -> Sources {
    files.iter().map(|(path, text)| (format!("src/{path}"), (*text).to_owned())).collect()
}

/// A crate with four rooms, of which these files are given.
fn house(files: &[(&str, &str)]) -> Sources {
    let mut all = sources(&[
        ("lib.rs", "pub mod ground; pub mod left; pub mod right; pub mod top;"),
        ("top.rs", ""),
        ("left.rs", ""),
        ("right.rs", ""),
        ("ground.rs", ""),
    ]);
    all.extend(sources(files));
    all
}

fn faults(sources: &Sources) -> Vec<String> {
    judge(sources, "src/lib.rs", Some(FLOORS)).unwrap().iter().map(Fault::to_string).collect()
}

/// Asserts that there is one fault: at this place, with these words.
#[track_caller]
fn one(sources: &Sources, place: &str, words: &[&str]) {
    let faults = faults(sources);
    assert!(faults.len() == 1 && faults[0].starts_with(place), "{faults:#?}");
    assert!(words.iter().all(|word| faults[0].contains(word)), "{faults:#?}");
}

#[track_caller]
fn none(sources: &Sources) {
    assert_eq!(faults(sources), [""; 0]);
}

#[test]
fn imports_downwards_are_right() {
    none(&house(&[
        ("top.rs", "use crate::left::A;\nuse crate::{right, ground::{self, B}};\nfn f() { crate::ground::g() }"),
        ("left.rs", "use super::ground::B;\npub struct A;"),
    ]));
}

#[test]
fn upward_imports_are_seen() {
    let above = "which stands above it";
    one(&house(&[("ground.rs", "\nuse crate::left::A;")]), "src/ground.rs:2: ", &["crate::left::A", above]);
    one(
        &house(&[("left.rs", "use super::{\n    ground,\n    top::T,\n};")]),
        "src/left.rs:3: ",
        &["`left`", "`top`", above],
    );
    one(&house(&[("ground.rs", "use crate::left::*;")]), "src/ground.rs:1: ", &["crate::left", above]);
    // In code, in types, in what is public only in a part.
    one(&house(&[("ground.rs", "fn f() {\n    crate::top::g();\n}")]), "src/ground.rs:2: ", &["crate::top::g"]);
    one(&house(&[("ground.rs", "struct S(crate::top::T);")]), "src/ground.rs:1: ", &["crate::top::T"]);
    one(&house(&[("ground.rs", "impl crate::top::T for u8 {}")]), "src/ground.rs:1: ", &["crate::top::T"]);
    none(&house(&[("ground.rs", "pub(in crate::top) fn f() {}")]));
}

#[test]
fn imports_in_macros_are_seen() {
    let assembly = "core::arch::global_asm!(\"bl {f}\",\n    f = sym crate::top::f);";
    one(&house(&[("ground.rs", assembly)]), "src/ground.rs:2: ", &["crate::top::f"]);
    let of_its_own = "macro_rules! m { () => { $crate::top::f() }; }";
    one(&house(&[("ground.rs", of_its_own)]), "src/ground.rs:1: ", &["crate::top::f"]);
    let inside = "fn f() { assert_eq!(1, g(&[super::left::X])); }";
    one(&house(&[("ground.rs", inside)]), "src/ground.rs:1: ", &["crate::left::X"]);
    let lines = "with! {\n use crate::{ground, top::T};\n}";
    one(&house(&[("left.rs", lines)]), "src/left.rs:2: ", &["crate::top"]);
}

#[test]
fn imports_on_one_floor_are_seen() {
    let words = &["`left`", "`right`", "beside it, on the same floor"];
    one(&house(&[("left.rs", "use crate::right::R;")]), "src/left.rs:1: ", words);
}

#[test]
fn imports_through_the_root_are_seen() {
    let root = "pub mod ground; pub mod left; pub mod right; pub mod top; pub use ground::B;";
    let words = &["the crate's root", "above"];
    one(&house(&[("lib.rs", root), ("left.rs", "use crate::B;")]), "src/left.rs:1: ", words);
    none(&house(&[("lib.rs", root), ("left.rs", "use crate::ground::B;")]));
}

#[test]
fn a_module_without_a_floor_is_seen() {
    let root = "mod ground; mod left; mod right; mod top; mod attic;";
    one(&house(&[("lib.rs", root), ("attic.rs", "")]), "src/attic.rs:1: ", &["no floor"]);
}

#[test]
fn circles_are_seen_also_inside_a_room() {
    let files = [("left.rs", "mod a;\nmod b;"), ("left/a.rs", "\nuse super::b::B;"), ("left/b.rs", "use super::a::A;")];
    one(&house(&files), "src/left/a.rs:2: ", &["circle", "src/left/a.rs:2 -> src/left/b.rs:1"]);
    let files = [("left.rs", "mod a;\nuse a::A;\nstruct L;"), ("left/a.rs", "use super::L;\npub struct A;")];
    one(&house(&files), "src/left.rs:2: ", &["circle", "src/left.rs:2 -> src/left/a.rs:1"]);
    // Without floors, too.
    let crate_of_two = sources(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "use crate::c::C;"),
        ("c.rs", "use crate::a::A;"),
    ]);
    let found = judge(&crate_of_two, "src/lib.rs", None).unwrap();
    assert!(found.len() == 1 && found[0].sentence.contains("a.rs:1 -> src/b.rs:1 -> src/c.rs:1"), "{found:?}");
}

/// A module may be the face of its children: what is imported through it comes from the child.
#[test]
fn a_face_is_looked_through() {
    let face = ("left.rs", "mod a;\nmod b;\npub use a::A;\npub use self::b::{B as C};");
    none(&house(&[face, ("left/a.rs", "pub struct A;"), ("left/b.rs", "use super::A;\npub struct B;")]));
    let files = [face, ("left/a.rs", "use super::C;\npub struct A;"), ("left/b.rs", "use super::A;\npub struct B;")];
    one(&house(&files), "src/left/a.rs:1: ", &["circle"]);
    // What is beside a room is no child.
    one(&house(&[("ground.rs", "pub use crate::top::T;")]), "src/ground.rs:1: ", &["`top`"]);
}

#[test]
fn modules_inside_a_file_are_the_file() {
    let text = "mod inner {\n    use super::super::top::T;\n    use super::X;\n}\nstruct X;";
    one(&house(&[("ground.rs", text)]), "src/ground.rs:2: ", &["crate::top::T"]);
    none(&house(&[("ground.rs", "pub mod bits { pub const A: u8 = 1; }"), ("left.rs", "use crate::ground::bits::A;")]));
}

#[test]
fn tests_may_look_anywhere_and_other_crates_are_none_of_it() {
    none(&house(&[
        ("ground.rs", "#[cfg(test)]\nmod tests {\n    use crate::top::T;\n    fn f() { crate::left::g() }\n}"),
        ("left.rs", "#[cfg(test)]\nmod tests;\n#[cfg(all(test, unix))]\nuse crate::top::T;"),
        ("left/tests.rs", "use crate::top::T;"),
        ("right.rs", "use top::T;\nuse std::left;\n#[path = \"../../other.rs\"]\nmod other;"),
    ]));
    one(&house(&[("ground.rs", "#[cfg(not(test))]\nuse crate::top::T;")]), "src/ground.rs:2: ", &["crate::top"]);
}

#[test]
fn what_cannot_be_read_is_said() {
    let missing = judge(&sources(&[("lib.rs", "mod a;")]), "src/lib.rs", None).unwrap_err();
    assert!(missing.contains("src/a/mod.rs is missing"), "{missing}");
    let wrong = judge(&sources(&[("lib.rs", "\nfn f( {}")]), "src/lib.rs", None).unwrap_err();
    assert!(wrong.starts_with("src/lib.rs:2: "), "{wrong}");
    let of_tests = ("left.rs", "#[cfg(test)]\nmod tests;");
    let files = [("cellar.rs", ""), of_tests, ("left/tests.rs", "mod more;"), ("left/tests/more.rs", "")];
    let stray = strays(&house(&files), &["src/lib.rs"]).unwrap();
    assert!(stray.len() == 1 && stray[0].file == "src/cellar.rs", "{stray:?}");
}

fn long(lines: usize) -> String {
    format!("fn short() {{}}\n\nimpl S {{\n    fn long() {{\n{}    }}\n}}\n", "        g();\n".repeat(lines - 2))
}

#[test]
fn lengths_are_seen() {
    let judge = |text: String, exceptions: &[Exception]| -> Vec<String> {
        let faults = length::judge(&Sources::from([("a.rs".to_owned(), text)]), exceptions).unwrap();
        faults.iter().map(Fault::to_string).collect()
    };
    assert_eq!(judge(long(80), &[]), [""; 0]);
    assert_eq!(judge(long(81), &[]), ["a.rs:4: `long` has 81 lines; a function has at most 80"]);
    let exception = Exception { file: "a.rs", function: Some("long"), reason: "a table" };
    assert_eq!(judge(long(81), &[exception]), [""; 0]);
    let unused = judge(long(80), &[exception]);
    assert!(unused.len() == 1 && unused[0].contains("strike it out"), "{unused:?}");
    assert_eq!(judge("\n".repeat(450), &[]), [""; 0]);
    assert_eq!(judge("\n".repeat(451), &[]), ["a.rs:1: 451 lines; a file has at most 450"]);
    let exception = Exception { function: None, ..exception };
    assert_eq!(judge("\n".repeat(451), &[exception]), [""; 0]);
}
