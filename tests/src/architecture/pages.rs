//! What pages promise, and the tests that they name for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{sources, workspace};

/// What a page names as a test, `module::`, `module::name` or `module::first_words_…`: module and beginning of the name.
fn named_tests(page: &str) -> BTreeSet<(String, String)> {
    let ticked = page.split('`').skip(1).step_by(2).filter(|word| word.contains("::") && !word.contains(' '));
    let pair = |word: &str| {
        let (module, name) = word.rsplit_once("::")?;
        let module = module.rsplit("::").find(|part| *part != "tests")?;
        Some((module.to_owned(), name.trim_end_matches('…').to_owned()))
    };
    ticked.filter_map(pair).collect()
}

#[test]
fn the_security_page_names_tests_that_are_there_and_one_for_each_thing_that_is_promised() {
    let page = std::fs::read_to_string(workspace().join("docs/security.md")).expect("docs/security.md");
    let texts: Vec<(PathBuf, String)> = sources()
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(path).expect("a source file")))
        .collect();
    let is_module = |path: &Path, module: &str| {
        path.file_stem().is_some_and(|stem| stem == module) || path.iter().any(|part| part == module)
    };
    let named = named_tests(&page);
    assert!(named.len() > 25, "{named:?}");
    for (module, name) in named {
        let found = texts.iter().any(|(path, text)| {
            is_module(path, &module) && text.contains("test]") && text.contains(&format!("fn {name}"))
        });
        assert!(found, "docs/security.md names {module}::{name}, which is not there");
    }
    // Alone names are whole names of tests.
    for name in page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 4 && !word.contains("::"))
    {
        assert!(texts.iter().any(|(_, text)| text.contains(&format!("fn {name}("))), "{name} is not there");
    }
    let promises = page.split("\n## How").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("section How");
    for promise in promises.split("\n- ").skip(1) {
        let has_name = promise.split('`').any(|word| word.contains("::") || word.matches('_').count() > 4);
        assert!(has_name, "no test is named for: {promise}");
    }
}
