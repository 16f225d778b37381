//! How long files and functions are.

use crate::fault::Fault;
use crate::source::Sources;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{ImplItemFn, ItemFn, Signature, TraitItemFn};

/// Lines that a file may have.
pub const FILE: usize = 450;
/// Lines that a function may have.
pub const FUNCTION: usize = 80;

/// A file or a function that may be longer.
#[derive(Debug, Clone, Copy)]
pub struct Exception {
    /// The file, relative to the workspace.
    pub file: &'static str,
    /// The function, if it is one.
    pub function: Option<&'static str>,
    /// Why it is natural.
    pub reason: &'static str,
}

/// What is too long, and is no exception; and the exceptions that are none any more.
///
/// # Errors
/// A sentence, if a file is not Rust.
pub fn judge(sources: &Sources, exceptions: &[Exception]) -> Result<Vec<Fault>, String> {
    let mut long = Vec::new();
    for (file, text) in sources {
        let lines = text.lines().count();
        if lines > FILE {
            long.push((file.clone(), None, 1, lines));
        }
        if file.ends_with(".rs") {
            let syntax = syn::parse_file(text).map_err(|error| format!("{file}: {error}"))?;
            let mut functions = Functions(Vec::new());
            functions.visit_file(&syntax);
            let functions = functions.0.into_iter().filter(|(.., lines)| *lines > FUNCTION);
            long.extend(functions.map(|(name, line, lines)| (file.clone(), Some(name), line, lines)));
        }
    }
    let excuses = |exception: &Exception, (file, function, ..): &(String, Option<String>, usize, usize)| {
        exception.file == file && exception.function == function.as_deref()
    };
    let unused = exceptions.iter().filter(|exception| !long.iter().any(|long| excuses(exception, long)));
    let mut faults: Vec<Fault> = unused
        .map(|exception| {
            let what = exception.function.map_or("this file".into(), |function| format!("`{function}`"));
            let sentence =
                format!("{what} is an exception of tests/house, and is not too long (any more): strike it out");
            Fault { file: exception.file.into(), line: 1, sentence }
        })
        .collect();
    for long in long.iter().filter(|long| !exceptions.iter().any(|exception| excuses(exception, long))) {
        let (file, function, line, lines) = long;
        let sentence = match function {
            None => format!("{lines} lines; a file has at most {FILE}"),
            Some(function) => format!("`{function}` has {lines} lines; a function has at most {FUNCTION}"),
        };
        faults.push(Fault { file: file.clone(), line: *line, sentence });
    }
    faults.sort();
    Ok(faults)
}

/// Names of functions, where they begin, and their lines.
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn add(&mut self, signature: &Signature, whole: proc_macro2::Span) {
        let begin = signature.span().start().line;
        self.0.push((signature.ident.to_string(), begin, whole.end().line + 1 - begin));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.add(&function.sig, function.block.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.add(&function.sig, function.block.span());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block.span());
        }
        visit::visit_trait_item_fn(self, function);
    }
}
