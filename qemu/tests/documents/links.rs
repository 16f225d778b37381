//! Links of documents, looked up without a network.

use super::markdown;
use super::{documents, root};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Where a document may point to outside of the workspace. Nobody asks them here.
const OUTSIDE: [&str; 4] =
    ["https://rustup.rs", "https://docs.rs/", "https://developer.arm.com/", "https://www.trustedfirmware.org/"];

/// A path without `.` and `..`, or nothing if it leaves the workspace.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => result.pop().then_some(())?,
            Component::Normal(name) => result.push(name),
            Component::Prefix(_) | Component::RootDir => return None,
        }
    }
    Some(result)
}

/// Why a link of `document` leads nowhere.
fn fault(document: &str, link: &str, anchors: &BTreeMap<String, Vec<String>>) -> Option<String> {
    if link.contains("://") {
        let known = OUTSIDE.iter().any(|outside| link.starts_with(outside));
        return (!known).then(|| format!("{document}: {link} is none of the places that documents point to"));
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let from = Path::new(document);
    let target = match path {
        "" => Some(from.to_owned()),
        path => plain(&from.parent().unwrap_or(Path::new("")).join(path)),
    };
    let Some(target) = target.filter(|target| root().join(target).exists()) else {
        return Some(format!("{document}: {link} leads to no file"));
    };
    let anchor = anchor?;
    let found = anchors.get(&*target.to_string_lossy()).is_some_and(|all| all.iter().any(|one| one == anchor));
    (!found).then(|| format!("{document}: {link} leads to no heading"))
}

#[test]
fn every_link_leads_somewhere() {
    let read: BTreeMap<String, markdown::Document> = documents()
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(root().join(&path)).expect("a document can be read");
            (path, markdown::read(&text))
        })
        .collect();
    let anchors = read.iter().map(|(path, document)| (path.clone(), document.anchors.clone())).collect();
    let links = read.iter().flat_map(|(path, document)| document.links.iter().map(move |link| (path, link)));
    let faults: Vec<String> = links.filter_map(|(path, link)| fault(path, link, &anchors)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn what_leads_nowhere_is_found() {
    let anchors = BTreeMap::from([("README.md".to_owned(), vec!["limits".to_owned()])]);
    for link in ["docs/none.md", "../README.md", "#nothing", "README.md#nothing", "https://example.org", "docs/../../x"]
    {
        assert!(fault("README.md", link, &anchors).is_some(), "{link}");
    }
    for link in ["docs/bbm.md", "#limits", "README.md#limits", "docs/../README.md", "stage2", "https://rustup.rs"] {
        assert_eq!(fault("README.md", link, &anchors), None);
    }
}
