//! What is in a document: links, headings' anchors, commands.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// What the tests want of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Where links and pictures lead.
    pub links: Vec<String>,
    /// The anchors of its headings.
    pub anchors: Vec<String>,
    /// Commands: lines of blocks of shell, and code in text that begins as one.
    pub commands: Vec<String>,
}

/// What a command begins with.
const PROGRAMS: [&str; 2] = ["cargo ", "hv "];

/// Reads a document.
pub fn read(text: &str) -> Document {
    let mut document = Document::default();
    let (mut heading, mut shell) = (None::<String>, None::<String>);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => document.anchors.extend(heading.take().map(|text| anchor(&text))),
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(kind))) if ["sh", "console"].contains(&&*kind) => {
                shell = Some(String::new());
            }
            Event::End(TagEnd::CodeBlock) => {
                document.commands.extend(shell.take().iter().flat_map(|text| lines(text)));
            }
            Event::Text(text) => {
                if let Some(into) = heading.as_mut().or(shell.as_mut()) {
                    into.push_str(&text);
                }
            }
            Event::Code(code) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&code);
                }
                if PROGRAMS.iter().any(|program| code.starts_with(program)) {
                    document.commands.push(code.into_string());
                }
            }
            _ => {}
        }
    }
    document
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

/// The commands of a block of shell: without comments, and lines that go on put together.
fn lines(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    // Where a block shows a session, only what is typed is a command.
    let session = text.lines().any(|line| line.starts_with("$ "));
    let typed = text.lines().filter_map(|line| if session { line.strip_prefix("$ ") } else { Some(line) });
    let commands = typed.map(|line| without_comment(line).trim().to_owned());
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    commands.filter(|line| PROGRAMS.iter().any(|program| line.starts_with(program))).map(|line| words(&line)).collect()
}

/// A line up to its comment: a `#` behind a blank, outside of quotes. What follows `||` is the loop's around it.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if before == ' ' => return &line[..at],
            (None, '|') if before == ' ' && line[at..].starts_with("|| ") => return &line[..at],
            _ => {}
        }
        before = c;
    }
    line
}

#[test]
fn a_document_is_read() {
    let text = "# One & `two`: three\n\n[a](b.md#c) ![d](e.png) `cargo hv x` `x`\n\n```sh\ncargo hv y 'a # b'   # why\n\
                echo no\nfor x; do\n  cargo hv z \\\n    --w || break\n```\n```console\n$ cargo hv s\ncargo hv output\n```\n\
                ```rust\ncargo hv no\n```\n";
    let document = read(text);
    assert_eq!(document.links, ["b.md#c", "e.png"]);
    assert_eq!(document.anchors, ["one--two-three"]);
    assert_eq!(document.commands, ["cargo hv x", "cargo hv y 'a # b'", "cargo hv z --w", "cargo hv s"]);
}
