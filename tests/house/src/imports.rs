//! What a file's modules import: its `use` lines, and the paths in its code and in its macros.

use crate::modules::{ModulePath, Modules, is_of_tests};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::collections::BTreeMap;
use syn::visit::{self, Visit};
use syn::{ImplItem, Item, ItemMod, ItemUse, UseTree, Visibility};

/// One file's use of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The place of the file that imports.
    pub from: usize,
    /// The line.
    pub line: usize,
    /// The place of the file that is imported from.
    pub to: usize,
    /// The path as it is written, from the crate's root on.
    pub path: String,
}

/// What each name that a `use` line brings into a module stands for.
type Names = BTreeMap<(ModulePath, String), ModulePath>;

/// All that the crate's files import from each other. A module that makes names of its own children public is their face:
/// that is no import, and a file that imports through it imports from where the name leads. Through the crate's root nothing
/// leads on, for nothing is to be imported through it.
pub fn imports(modules: &Modules) -> Vec<Import> {
    let mut names = Names::new();
    let mut found = Vec::new();
    for (place, file) in modules.files.iter().enumerate() {
        let mut seen = Seen { modules, names: &mut names, place, module: file.module.clone(), found: Vec::new() };
        seen.visit_file(&file.syntax);
        found.append(&mut seen.found);
    }
    let lead = |path: ModulePath| {
        let mut path = path;
        // No chain of names is deeper than this; one that leads back to itself does not compile.
        for _ in 0..16 {
            let (module, length) = modules.deepest(&path);
            let next = path.get(length).and_then(|name| names.get(&(module.clone(), name.clone())));
            match next {
                Some(next) if !module.is_empty() => path = [next, &path[length + 1..]].concat(),
                _ => break,
            }
        }
        modules.places[&modules.deepest(&path).0]
    };
    let import = |(from, line, path): (usize, usize, ModulePath)| {
        let written = path.join("::");
        Import { from, line, to: lead(path), path: format!("crate::{written}") }
    };
    found.into_iter().map(import).filter(|import| import.from != import.to).collect()
}

/// What has been seen of one file.
struct Seen<'a> {
    modules: &'a Modules,
    names: &'a mut Names,
    place: usize,
    /// Where the code that is looked at stands.
    module: ModulePath,
    /// Lines, and paths from the root on.
    found: Vec<(usize, usize, ModulePath)>,
}

impl Seen<'_> {
    /// A path as it is written in the current module, from the crate's root on; nothing if it leads out of the crate, or is
    /// one of the module's own names.
    fn absolute(&self, segments: &[String]) -> Option<ModulePath> {
        let first = segments.first()?;
        match first.as_str() {
            "crate" => Some(segments[1..].to_vec()),
            "self" if segments.len() > 1 => Some([&self.module, &segments[1..]].concat()),
            "super" => {
                let up = segments.iter().take_while(|&segment| segment == "super").count();
                let above = &self.module[..self.module.len().checked_sub(up)?];
                Some([above, &segments[up..]].concat())
            }
            _ => {
                let child = [&self.module[..], std::slice::from_ref(first)].concat();
                (segments.len() > 1 && self.modules.places.contains_key(&child))
                    .then(|| [&self.module, segments].concat())
            }
        }
    }

    fn path(&mut self, line: usize, segments: &[String]) {
        if let Some(path) = self.absolute(segments) {
            self.found.push((self.place, line, path));
        }
    }

    /// The leaves of a `use` line.
    fn leaves(&mut self, tree: &UseTree, before: &[String], is_public: bool) {
        let with = |name: String| [before, &[name]].concat();
        let (name, line, segments) = match tree {
            UseTree::Path(path) => return self.leaves(&path.tree, &with(path.ident.to_string()), is_public),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.leaves(tree, before, is_public));
            }
            UseTree::Name(name) if name.ident == "self" => {
                (before.last().cloned(), name.ident.span().start().line, before.to_vec())
            }
            UseTree::Name(name) => {
                (Some(name.ident.to_string()), name.ident.span().start().line, with(name.ident.to_string()))
            }
            UseTree::Rename(name) => {
                (Some(name.rename.to_string()), name.ident.span().start().line, with(name.ident.to_string()))
            }
            UseTree::Glob(glob) => (None, glob.star_token.spans[0].start().line, before.to_vec()),
        };
        // A glob of a child, or a child alone, has one segment.
        let child = segments.first().map(|first| [&self.module[..], std::slice::from_ref(first)].concat());
        let is_child = child.is_some_and(|child| self.modules.places.contains_key(&child));
        let path = self.absolute(&segments).or_else(|| is_child.then(|| [&self.module[..], &segments].concat()));
        let Some(path) = path else { return };
        let is_own = path.starts_with(&self.module) && self.modules.deepest(&path).1 > self.module.len();
        if let Some(name) = name {
            self.names.insert((self.module.clone(), name), path.clone());
        }
        if !(is_public && is_own) {
            self.found.push((self.place, line, path));
        }
    }

    /// The paths in a macro's tokens: they begin with `crate`, `super` or `self`.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) if first == "crate" || first == "super" || first == "self" => {
                    let (line, mut segments) = (first.span().start().line, vec![first.to_string()]);
                    while let Some(next) = after_colons(&tokens[at + 1..]) {
                        at += 3;
                        match next {
                            TokenTree::Ident(name) => segments.push(name.to_string()),
                            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                                self.group(&segments, group.stream());
                                segments.clear();
                                break;
                            }
                            _ => break,
                        }
                    }
                    if segments.len() > 1 {
                        self.path(line, &segments);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// The names in the braces of a `use` line in a macro; of a deeper path its first segment says enough.
    fn group(&mut self, before: &[String], tokens: TokenStream) {
        let mut is_first = true;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if is_first => {
                    self.path(name.span().start().line, &[before, &[name.to_string()]].concat());
                    is_first = false;
                }
                TokenTree::Punct(comma) if comma.as_char() == ',' => is_first = true,
                _ => {}
            }
        }
    }
}

/// What follows two colons at the beginning of `tokens`.
fn after_colons(tokens: &[TokenTree]) -> Option<&TokenTree> {
    match tokens {
        [TokenTree::Punct(first), TokenTree::Punct(second), next, ..]
            if first.as_char() == ':' && first.spacing() == Spacing::Joint && second.as_char() == ':' =>
        {
            Some(next)
        }
        _ => None,
    }
}

impl<'ast> Visit<'ast> for Seen<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        match item {
            ImplItem::Fn(function) if is_of_tests(&function.attrs) => {}
            _ => visit::visit_impl_item(self, item),
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        self.leaves(&item.tree, &[], is_public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            self.path(first.ident.span().start().line, &segments);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::a)` lets others see something; it imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}
