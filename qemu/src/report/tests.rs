//! The page is whole, needs nothing from outside, and shows words as words.

use super::*;
use crate::manager::about::{About, Mark, Setup};
use crate::manager::record::{Record, Round};
use crate::size::PAGE;

const START: u64 = 0x4000_0000;
/// What would be a page's own words if it were not escaped.
const HOSTILE: &str =
    "</title><script src=\"https://example.org/x.js\">alert('1')</script><img src=x onerror=alert(2)>&\u{0}\u{1b}[2J";

/// A folder with a run in it, of hostile words wherever a run has words.
fn recorded(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("hv-report-{name}-{}", std::process::id()));
    let memory = [(START, START + (64 << 20)), (START + (72 << 20), START + (128 << 20))];
    let mut record = Record::begin(&folder, &memory, "write protection").unwrap();
    for number in 1..=5u64 {
        let words = vec![(START + number * 64 * PAGE, u64::MAX), (START + (80 << 20), 1)];
        let seconds = number as f64 * 0.5;
        let (pages, rate, table_bytes) = (65, 130.0, 8192 + number * PAGE);
        record
            .add(&Round { number, seconds, words, pages, rate, table_bytes, faults: 65, splits: number, collapses: 0 })
            .unwrap();
    }
    record.finish().unwrap();
    let mut about = About::new(Setup {
        command: Some(HOSTILE.into()),
        kernel: HOSTILE.into(),
        cpu: HOSTILE.into(),
        cpus: 2,
        memory: 128 << 20,
        marks: vec![Mark { name: HOSTILE.into(), start: START, end: START + (4 << 20) }],
    });
    about.guest = memory.to_vec();
    about.mechanism = HOSTILE.into();
    about.begun = Some(1.0);
    about.audit = Some("audit: rounds 5, pages changed 7, reported 9, missed 0, over-reported 2".into());
    about.stores = Some([2, 1, 0]);
    about.failures = vec![HOSTILE.into()];
    about.write(&folder).unwrap();
    let quoted = HOSTILE.replace('"', "\"\"");
    let stores = format!("ipa,va,pc,cpu,denied,symbol\n0x40001000,0x1,0x2,0x0,0,\"{quoted}\"\n");
    std::fs::write(folder.join("stores.csv"), stores).unwrap();
    folder
}

fn page(folder: &Path) -> String {
    std::fs::read_to_string(write(folder, None).unwrap()).unwrap()
}

/// The names of a page's elements in order, and of those that it leaves open.
fn elements(page: &str) -> (Vec<String>, Vec<String>) {
    const VOID: [&str; 3] = ["meta", "br", "!DOCTYPE"];
    let (mut all, mut open) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some((_, after)) = rest.split_once('<') {
        let name: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || "/!".contains(*c)).collect();
        rest = after;
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(
                open.pop().as_deref(),
                Some(name),
                "an element is closed that is not the one that was opened last"
            );
        } else if !VOID.contains(&name.as_str()) {
            // Text in these two is no markup.
            if ["script", "style"].contains(&name.as_str()) {
                rest = after.split_once(&format!("</{name}>")).expect("it is closed").1;
            } else {
                open.push(name.clone());
            }
        }
        all.push(name);
    }
    (all, open)
}

#[test]
fn the_page_is_whole() {
    let folder = recorded("whole");
    let page = page(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    let (all, open) = elements(&page);
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"), "{page}");
    assert_eq!(open, [""; 0]);
    assert_eq!(all.iter().filter(|name| *name == "svg").count(), 5, "a heat map and four charts");
    for words in [
        "the hypervisor&#39;s memory",
        "the command begins",
        "missed 0, over-reported 2",
        "2 reported, 1 denied",
        "Where most was written",
        "1.3 MiB",
    ] {
        let plain = words.replace("&#39;", "'");
        assert!(page.contains(words) || page.contains(&plain), "`{words}` is missing");
    }
}

#[test]
fn the_page_refers_to_nothing_outside() {
    let folder = recorded("inside");
    let page = page(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    // With the run's own words taken out, no address is left, and no attribute or rule that loads something.
    let own = page.replace("https://example.org/x.js", "");
    for words in ["http:", "https:", "//", "url(", "@import", " href=", "<link", "<iframe", "<img", "fetch(", "import("]
    {
        assert!(!own.contains(words), "`{words}`");
    }
    let markup: String = own.split("<style>").flat_map(|part| part.split("</style>")).step_by(2).collect();
    assert!(!markup.contains("<script src"), "a script comes from elsewhere");
    assert!(page.contains("default-src 'none'") || page.contains("default-src &#39;none&#39;"));
}

#[test]
fn hostile_words_are_shown_not_obeyed() {
    let folder = recorded("hostile");
    let page = page(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    let (all, _) = elements(&page);
    assert_eq!(all.iter().filter(|name| *name == "script").count(), 1, "only the page's own");
    assert!(!all.iter().any(|name| name == "img"));
    // The title, the command, kernel, CPU, mechanism, failure, mark (twice), row of memory, and instruction.
    let shown = page.matches("&lt;img src=x onerror=alert(2)&gt;&amp;").count();
    assert!(shown >= 10, "{shown} times");
}

#[test]
fn what_is_no_run_is_refused_with_a_sentence() {
    let folder = recorded("broken");
    let refused = |what: &str| {
        let error = format!("{:#}", write(&folder, None).unwrap_err());
        assert!(error.contains(what), "{error}");
    };
    let bitmaps = std::fs::read(folder.join("dirty.bitmaps")).unwrap();
    for (at, byte, what) in [(0, b'X', "UNBDIRTY"), (22, 0xff, "memory can't be"), (24, 1, "bytes in a bitmap")] {
        let mut broken = bitmaps.clone();
        broken[at] = byte;
        std::fs::write(folder.join("dirty.bitmaps"), broken).unwrap();
        refused(what);
    }
    std::fs::write(folder.join("dirty.bitmaps"), &bitmaps[..40]).unwrap();
    refused("no whole bitmap");
    // A run that was cut off keeps what it has.
    std::fs::write(folder.join("dirty.bitmaps"), &bitmaps[..bitmaps.len() - 1]).unwrap();
    assert!(page(&folder).contains("asked 4 times"));
    let csv = std::fs::read_to_string(folder.join("dirty.csv")).unwrap();
    std::fs::write(folder.join("dirty.csv"), csv.replace("0.500", "NaN")).unwrap();
    refused("column `seconds`");
    std::fs::remove_file(folder.join("dirty.csv")).unwrap();
    assert!(page(&folder).contains("Who stored to protected memory"));
    std::fs::remove_file(folder.join("run.json")).unwrap();
    refused("holds no recorded run");
    std::fs::remove_dir_all(&folder).unwrap();
    refused("there is no folder");
}
