//! Which way imports run.

use crate::fault::Fault;
use crate::imports::{Import, imports};
use crate::modules::Modules;
use crate::source::Sources;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A crate's floors, the top one first; on each its rooms: modules by their paths (`a`, or `a::b`), with all that is in them.
/// The root stands above all.
pub type Floors<'a> = &'a [&'a [&'a str]];

/// What is wrong with a crate's imports. Without floors, only circles are.
///
/// # Errors
/// A sentence, if the crate can't be read.
pub fn judge(sources: &Sources, root: &str, floors: Option<Floors<'_>>) -> Result<Vec<Fault>, String> {
    let modules = Modules::find(sources, root)?;
    let imports = imports(&modules);
    let mut faults = Vec::new();
    if let Some(floors) = floors {
        faults.extend(without_a_floor(&modules, floors));
        faults.extend(imports.iter().filter_map(|import| upward(&modules, floors, import)));
    }
    faults.extend(circles(&modules, &imports));
    faults.sort();
    faults.dedup();
    Ok(faults)
}

/// Rust files below the root's folder that are in no module, of all crates that have their root there.
///
/// # Errors
/// A sentence, if a crate can't be read.
pub fn strays(sources: &Sources, roots: &[&str]) -> Result<Vec<Fault>, String> {
    let (mut known, mut of_tests) = (BTreeSet::new(), Vec::new());
    for root in roots {
        let modules = Modules::find(sources, root)?;
        known.extend(modules.files.into_iter().map(|file| file.path));
        of_tests.extend(modules.of_tests);
    }
    let is_of_tests = |file: &str| {
        of_tests.iter().any(|stem| file.strip_prefix(stem).is_some_and(|rest| rest.starts_with(['.', '/'])))
    };
    let strays = sources.keys().filter(|file| file.ends_with(".rs") && !known.contains(*file) && !is_of_tests(file));
    let sentence = "no crate has this file as a module";
    Ok(strays.map(|file| Fault { file: file.clone(), line: 1, sentence: sentence.into() }).collect())
}

/// Where a module stands: its floor, 0 for the root, and its room.
fn place<'a>(floors: Floors<'a>, module: &[String]) -> Option<(usize, &'a str)> {
    if module.is_empty() {
        return Some((0, "the crate's root"));
    }
    let rooms = floors.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (floor + 1, *room)));
    let around = rooms.filter(|(_, room)| {
        let room: Vec<&str> = room.split("::").collect();
        module.len() >= room.len() && room.iter().zip(module).all(|(room, module)| room == module)
    });
    around.max_by_key(|(_, room)| room.len())
}

fn without_a_floor(modules: &Modules, floors: Floors<'_>) -> Vec<Fault> {
    let lost = modules.files.iter().filter(|file| place(floors, &file.module).is_none());
    let sentence = "this module stands on no floor: give it one in the table of tests/house";
    lost.map(|file| Fault { file: file.path.clone(), line: 1, sentence: sentence.into() }).collect()
}

fn upward(modules: &Modules, floors: Floors<'_>, import: &Import) -> Option<Fault> {
    let (from, to) = (&modules.files[import.from], &modules.files[import.to]);
    let ((floor, room), (other_floor, other_room)) = (place(floors, &from.module)?, place(floors, &to.module)?);
    if room == other_room || other_floor > floor {
        return None;
    }
    let how = if other_floor == floor { "beside it, on the same floor" } else { "above it" };
    let sentence = format!("`{room}` imports `{}` from `{other_room}`, which stands {how}", import.path);
    Some(Fault { file: from.path.clone(), line: import.line, sentence })
}

/// Of each set of files that all lead to each other, the shortest circle.
fn circles(modules: &Modules, imports: &[Import]) -> Vec<Fault> {
    let mut edges: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    for import in imports {
        edges.entry(import.from).or_default().entry(import.to).or_insert(import.line);
    }
    let (mut done, mut faults) = (BTreeSet::new(), Vec::new());
    let mut found: Vec<Vec<usize>> = (0..modules.files.len()).filter_map(|file| back_to(&edges, file)).collect();
    found.sort_by_key(Vec::len);
    for circle in found {
        if circle.iter().any(|file| done.contains(file)) {
            continue;
        }
        // A file that is on another circle with these is not named again: what breaks this circle may break that one.
        let reached = |from: usize| reachable(&edges, from);
        let with = reached(circle[0]);
        done.extend(with.into_iter().filter(|&file| reached(file).contains(&circle[0])));
        let next = circle.iter().skip(1).chain(&circle[..1]);
        let steps = circle.iter().zip(next).map(|(from, to)| (modules.files[*from].path.clone(), edges[from][to]));
        let steps: Vec<(String, usize)> = steps.collect();
        let places: Vec<String> = steps.iter().map(|(file, line)| format!("{file}:{line}")).collect();
        let sentence = format!("files import each other in a circle: {}", places.join(" -> "));
        faults.push(Fault { file: steps[0].0.clone(), line: steps[0].1, sentence });
    }
    faults
}

fn reachable(edges: &BTreeMap<usize, BTreeMap<usize, usize>>, from: usize) -> BTreeSet<usize> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        open.extend(edges.get(&file).into_iter().flat_map(BTreeMap::keys).filter(|&&next| seen.insert(next)));
    }
    seen
}

/// The shortest way from a file back to itself, if there is one.
fn back_to(edges: &BTreeMap<usize, BTreeMap<usize, usize>>, file: usize) -> Option<Vec<usize>> {
    let (mut before, mut open) = (BTreeMap::new(), VecDeque::from([file]));
    while let Some(at) = open.pop_front() {
        for &next in edges.get(&at).into_iter().flat_map(BTreeMap::keys) {
            if next == file {
                let mut way = vec![at];
                while way[way.len() - 1] != file {
                    way.push(before[&way[way.len() - 1]]);
                }
                way.reverse();
                return Some(way);
            }
            if next != file && !before.contains_key(&next) {
                before.insert(next, at);
                open.push_back(next);
            }
        }
    }
    None
}
