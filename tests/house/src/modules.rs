//! A crate's modules: each file's, and those inside files.

use crate::source::Sources;
use std::collections::BTreeMap;
use syn::{Attribute, Item, Meta};

/// A module's path from the crate's root on; the root's is empty.
pub type ModulePath = Vec<String>;

/// One file of a crate.
pub struct File {
    /// Its path, relative to the workspace.
    pub path: String,
    /// The module that it is.
    pub module: ModulePath,
    /// What is in it.
    pub syntax: syn::File,
}

/// A crate's files, and where each module is.
#[derive(Default)]
pub struct Modules {
    /// The files, the root first.
    pub files: Vec<File>,
    /// For each module, files' and others, the place of its file in `files`.
    pub places: BTreeMap<ModulePath, usize>,
    /// The files that only tests have, without `.rs`: the folders of the same name are theirs, too.
    pub of_tests: Vec<String>,
}

impl Modules {
    /// Finds the modules of the crate whose root is the file `root`. Left out are those that only tests have, and those
    /// whose file has a `#[path]`: it is another crate's.
    ///
    /// # Errors
    /// A sentence, if a file is missing or is not Rust.
    pub fn find(sources: &Sources, root: &str) -> Result<Self, String> {
        let mut modules = Self::default();
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        modules.add(sources, root.to_owned(), &folder, Vec::new())?;
        Ok(modules)
    }

    /// The module that the path leads to, and how many of its segments do.
    pub fn deepest(&self, path: &[String]) -> (ModulePath, usize) {
        let length = (0..=path.len()).rev().find(|&length| self.places.contains_key(&path[..length])).unwrap_or(0);
        (path[..length].to_vec(), length)
    }

    fn add(&mut self, sources: &Sources, path: String, folder: &str, module: ModulePath) -> Result<(), String> {
        let text = sources.get(&path).ok_or_else(|| format!("{path} is missing"))?;
        let syntax = syn::parse_file(text).map_err(|error| format!("{path}:{}: {error}", error.span().start().line))?;
        let place = self.files.len();
        let mut below = Vec::new();
        self.places.insert(module.clone(), place);
        // The names of modules around one inside a file are folders, too.
        let folder_of = |child: &[String]| [&[folder.to_owned()], &child[module.len()..]].concat().join("/");
        inside(&syntax.items, &module, &mut |child, kind| match kind {
            Kind::File => below.push(child),
            Kind::Inside => _ = self.places.insert(child, place),
            Kind::OfTests => self.of_tests.push(folder_of(&child)),
        });
        let below: Vec<(ModulePath, String)> =
            below.into_iter().map(|child| (child.clone(), folder_of(&child))).collect();
        self.files.push(File { path, module: module.clone(), syntax });
        for (child, folder) in below {
            let flat = format!("{folder}.rs");
            let path = if sources.contains_key(&flat) { flat } else { format!("{folder}/mod.rs") };
            self.add(sources, path, &folder, child)?;
        }
        Ok(())
    }
}

/// What a module is.
enum Kind {
    /// A file.
    File,
    /// A part of the file that declares it.
    Inside,
    /// Something that only tests have.
    OfTests,
}

/// Tells `found` of each module that these items declare.
fn inside(items: &[Item], module: &[String], found: &mut impl FnMut(ModulePath, Kind)) {
    for item in items {
        let Item::Mod(item) = item else { continue };
        if item.attrs.iter().any(|attribute| attribute.path().is_ident("path")) {
            continue;
        }
        let path = [module, &[item.ident.to_string()]].concat();
        match &item.content {
            _ if is_of_tests(&item.attrs) => found(path, Kind::OfTests),
            None => found(path, Kind::File),
            Some((_, items)) => {
                found(path.clone(), Kind::Inside);
                inside(items, &path, found);
            }
        }
    }
}

/// Whether something is compiled for tests only: `#[cfg(test)]`, or `#[cfg(all(test, ...))]`.
pub fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            let mut words = condition.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.clone().any(|word| word == "test") && !words.any(|word| word == "not" || word == "any")
        }
        _ => false,
    })
}
