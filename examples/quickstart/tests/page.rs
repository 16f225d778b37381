//! The page of the engine's documentation that walks through this program has its words, and no others.

use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The blocks of Rust in a page.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```rust")
        .skip(1)
        .map(|rest| {
            rest.split_once("\n")
                .and_then(|(kind, rest)| {
                    assert_eq!(kind, "", "code on the page is compiled and booted, not {kind}");
                    rest.split_once("```")
                })
                .expect("each block of code has an end")
                .0
        })
        .collect()
}

#[test]
fn each_line_of_code_on_the_page_is_booted() {
    let page = read("../../stage2/docs/embedding.md");
    let sources = [read("src/main.rs"), read("src/machine.rs")];
    let blocks = blocks(&page);
    assert!(blocks.len() >= 8, "the page goes through the program");
    for block in blocks {
        assert!(
            sources.iter().any(|source| source.contains(block)),
            "this is not in examples/quickstart/src, line by line:\n{block}"
        );
    }
}
