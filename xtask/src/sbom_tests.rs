//! The list against the binary itself, which knows nothing of how the list was made.

use std::path::PathBuf;

use super::*;

#[test]
fn a_crate_s_users_are_listed_once_and_count_wherever_it_stands() {
    let text = "0 a v1.0.0 (/x)\n1 b v2.0.0\n2 c v3.0.0\n1 d v4.0.0+x (*)\n\n0 e v1.0.0 (/y)\n1 b v2.0.0 (*)\n";
    let one = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let linked = linked(&tree(text), &[one("e", "1.0.0")]);
    assert_eq!(linked.into_iter().collect::<Vec<_>>(), [one("b", "2.0.0"), one("c", "3.0.0"), one("e", "1.0.0")]);
}

/// Names with versions of the crates whose source paths are in a binary: of panics, and of debugging information.
fn seen(binary: &Path) -> BTreeSet<String> {
    let bytes = std::fs::read(binary)
        .unwrap_or_else(|error| panic!("{}: {error}; build first: cargo build --workspace --bins", binary.display()));
    let text = String::from_utf8_lossy(&bytes);
    let paths = text.split("/registry/src/").skip(1).filter_map(|rest| {
        let name = rest.split('/').nth(1)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        (name.len() < 120 && name.contains('-') && name.chars().all(plain)).then(|| name.to_owned())
    });
    paths.collect()
}

#[test]
fn every_crate_that_is_in_a_binary_is_listed_and_so_are_glibc_and_the_libraries_that_crates_bring() {
    let built = std::env::var_os("CULVERT_BINARIES").map(PathBuf::from);
    let binaries = built.unwrap_or_else(|| cargo::binaries().expect("cargo's target directory"));
    for ((image, packages), least) in IMAGES.into_iter().zip([80, 60, 60]) {
        let bom = of(image, packages).expect("a list");
        let components = bom["components"].as_array().expect("components");
        let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let listed: BTreeSet<String> =
            components.iter().map(|one| format!("{}-{}", text(one, "name"), text(one, "version"))).collect();
        for package in packages {
            let binary = if *package == "cni-plugin" { "culvert-cni" } else { package };
            let seen = seen(&binaries.join(binary));
            assert!(*package == "cni-plugin" || seen.len() >= least, "{binary}: only {} crates are seen", seen.len());
            let missing: Vec<_> = seen.difference(&listed).collect();
            assert!(missing.is_empty(), "{binary} has {missing:?}, which are not listed");
            eprintln!("figure: {image}: {} crates seen in {binary}, {} components listed", seen.len(), listed.len());
        }
        for name in ["glibc", "libgcc", "rust-std"] {
            assert!(components.iter().any(|one| one["name"] == name && !text(one, "version").is_empty()), "{name}");
        }
        let has = |name: &str| components.iter().any(|one| one["name"] == name);
        assert!(has("aws-lc"), "{image}: the library that does its cryptography");
        assert!(image != "node-proxy" || has("jemalloc"), "its allocator");
        // Well formed: each has a licence and a name of its own, and every edge leads to one that is there.
        let refs: BTreeSet<String> = components.iter().map(|one| text(one, "bom-ref")).collect();
        assert_eq!(refs.len(), components.len(), "a name twice");
        assert!(components.iter().all(|one| !text(&one["licenses"][0], "expression").is_empty()), "{image}: a licence");
        for edge in bom["dependencies"].as_array().expect("edges") {
            for on in edge["dependsOn"].as_array().into_iter().flatten() {
                assert!(refs.contains(on.as_str().unwrap_or_default()), "{image}: {on} is not there");
            }
        }
    }
}

#[test]
fn glibc_is_named_with_the_version_of_its_debian_package() {
    let debian = said(Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", "libc6-dev"]));
    let glibc = of_machine("glibc", "libc.a", "LGPL-2.1-or-later", &["getconf", "GNU_LIBC_VERSION"]).expect("glibc");
    match debian {
        Ok(version) => {
            assert_eq!(glibc["version"], version.as_str());
            assert!(
                glibc["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:deb/debian/libc6-dev@")),
                "{glibc}"
            );
        }
        Err(_) => assert!(glibc["version"].as_str().is_some_and(|version| version.starts_with("2.")), "{glibc}"),
    }
}
