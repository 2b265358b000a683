//! What a source file says, as syn reads it: which modules of its crate it names, and where `unsafe` stands. What is compiled for tests
//! alone is left out.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItemFn, Item, ItemUse, Meta, UseTree};

/// A module, or something in one, from the root of its crate.
pub type Name = Vec<String>;

/// What a file says.
#[derive(Default)]
pub struct Source {
    /// The module that is being read.
    here: Name,
    /// Everything that is named by more than its last word, from the crate's root where it is of the crate.
    pub names: BTreeSet<Name>,
    /// Lines with an `unsafe` block, function, impl or trait, tests included.
    pub unsafe_lines: BTreeSet<usize>,
    /// Depth of what is compiled for tests alone.
    tests: usize,
}

impl Source {
    /// Reads the file of this module; the error says what is no Rust.
    pub fn read(text: &str, here: &[&str]) -> Result<Self, syn::Error> {
        let file = syn::parse_file(text)?;
        let mut source = Self { here: here.iter().map(|&word| word.to_owned()).collect(), ..Self::default() };
        source.visit_file(&file);
        Ok(source)
    }

    /// Whether the file names this module or something in it.
    pub fn names_any_of(&self, module: &[&str]) -> bool {
        self.names.iter().any(|name| name.len() >= module.len() && name.iter().zip(module).all(|(is, of)| is == of))
    }

    fn name(&mut self, words: &[String]) {
        if self.tests > 0 {
            return;
        }
        let (mut base, mut rest) = match words {
            [first, rest @ ..] if first == "crate" => (Name::new(), rest),
            [first, rest @ ..] if first == "self" => (self.here.clone(), rest),
            [first, ..] if first == "super" => (self.here.clone(), words),
            // Of a module below this one, or of another crate or something that `use` has named: then it is nobody's name here.
            _ => (self.here.clone(), words),
        };
        while let [first, behind @ ..] = rest
            && first == "super"
        {
            base.pop();
            rest = behind;
        }
        base.extend_from_slice(rest);
        self.names.insert(base);
    }

    fn tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |word: &dyn ToString| [before, &[word.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            UseTree::Name(name) => self.name(&with(&name.ident)),
            UseTree::Rename(name) => self.name(&with(&name.ident)),
            UseTree::Glob(_) => self.name(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }

    /// Paths inside a macro's tokens, which syn does not read.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut words = Name::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 && !words.is_empty() => words.push(ident.to_string()),
                TokenTree::Ident(ident) => {
                    self.path(&words);
                    if ident == "unsafe" {
                        self.unsafe_lines.insert(ident.span().start().line);
                    }
                    words = vec![ident.to_string()];
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {
                    self.path(&words);
                    words.clear();
                }
            }
            colons = 0;
        }
        self.path(&words);
    }

    fn path(&mut self, words: &[String]) {
        if words.len() > 1 {
            self.name(words);
        }
    }

    fn within(&mut self, attributes: &[Attribute], read: impl FnOnce(&mut Self)) {
        let tests = usize::from(attributes.iter().any(is_for_tests));
        self.tests += tests;
        read(self);
        self.tests -= tests;
    }
}

/// `#[cfg(test)]`, and nothing that holds outside of tests as well.
fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string() == "test")
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item(&mut self, item: &'ast Item) {
        self.within(attributes(item), |source| {
            let inline = match item {
                Item::Mod(module) if module.content.is_some() => Some(module.ident.to_string()),
                _ => None,
            };
            let depth = source.here.len();
            source.here.extend(inline);
            visit::visit_item(source, item);
            source.here.truncate(depth);
        });
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.within(&item.attrs, |source| visit::visit_impl_item_fn(source, item));
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Name = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.path(&words);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafe_lines.insert(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if let syn::Safety::Unsafe(word) = &signature.safety {
            self.unsafe_lines.insert(word.span.start().line);
        }
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.unsafe_lines.extend(item.unsafety.as_ref().map(|word| word.span.start().line));
        visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.unsafe_lines.extend(item.unsafety.as_ref().map(|word| word.span.start().line));
        visit::visit_item_trait(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each way in which a file of the worker can name its module `copy`.
    #[test]
    fn every_way_to_name_a_module_is_seen() {
        for text in [
            "use super::copy;",
            "use super::copy::duplex;",
            "use super::{connect, copy};",
            "use super::{connect::{self, open}, copy::{Cut, duplex as join}};",
            "use super::copy::*;",
            "pub(super) use super::copy as join;",
            "use crate::worker::copy;",
            "use crate::{keeper, worker::{copy, route}};",
            "mod inner { use super::super::copy; }",
            "fn f() { super::copy::duplex(); }",
            "fn f(cut: &crate::worker::copy::Cut) {}",
            "fn f(end: Box<dyn super::copy::End>) {}",
            "fn f() { select! { end = super::copy::duplex() => end } }",
            "fn f() { outer!(a, { inner!(crate::worker::copy::Cut) }) }",
            "#[cfg(test)] use x::y; fn f() { super::copy::duplex(); }",
            "#[cfg(any(test, feature = \"testing\"))] use super::copy;",
            "struct Holds<T: super::copy::End>(T);",
            "impl super::copy::End for u8 {}",
        ] {
            let source = Source::read(text, &["worker", "accept"]).expect(text);
            assert!(source.names_any_of(&["worker", "copy"]), "{text}: {:?}", source.names);
        }
    }

    #[test]
    fn what_only_tests_name_and_what_is_called_alike_is_none() {
        for text in [
            "#[cfg(test)] use super::copy;",
            "#[cfg(test)] mod tests { use super::super::copy; fn f() { crate::worker::copy::duplex(); } }",
            "impl A { #[cfg(test)] fn f() { super::copy::duplex(); } }",
            "use super::copying; use std::io::copy; use crate::keeper::copy;",
            "fn f(bytes: &[u8]) { let copy = bytes.to_vec(); io::copy(copy); }",
            "// super::copy::duplex\nconst TEXT: &str = \"super::copy::duplex\";",
        ] {
            let source = Source::read(text, &["worker", "accept"]).expect(text);
            assert!(!source.names_any_of(&["worker", "copy"]), "{text}: {:?}", source.names);
        }
    }

    #[test]
    fn every_kind_of_unsafe_is_seen_and_what_is_only_called_so_is_not() {
        let text = "fn a() { unsafe { b() } }\nunsafe fn b() {}\nunsafe impl C for D {}\nunsafe trait E {}\n\
                    impl D { unsafe fn f() {} }\nfn g() { h!(unsafe { b() }) }\n#[cfg(test)] mod i { fn j() { unsafe {} } }\n\
                    // unsafe { }\nconst K: &str = \"unsafe { }\"; #[deny(unsafe_code)] fn l() {}";
        let source = Source::read(text, &[]).expect("Rust");
        assert_eq!(source.unsafe_lines.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    }
}
