//! The cluster's DNS, built from its Go module: upstream's server with the plugins that a cluster needs, made once and kept in the cache.

use std::path::PathBuf;

use crate::kubernetes::{FLAGS, compile, go_in, hash};
use crate::{cache, cargo, phase, tools};

const VERSION: &str = "1.15.0";
/// The plugins.
const MAIN: &str = include_str!("../coredns/main.go");

/// Path of `coredns`.
pub fn binary() -> anyhow::Result<PathBuf> {
    let key = format!("{VERSION}-{:016x}", hash(&[MAIN, &FLAGS.concat(), GO_MOD]));
    let place = cache::tool("coredns", &key, |draft| {
        phase::run(&format!("build CoreDNS {VERSION} (Go module github.com/coredns/coredns, 1 to 2 minutes)"), || {
            let (go, source) = (tools::go()?, draft.join("source"));
            std::fs::create_dir(&source)?;
            std::fs::write(source.join("main.go"), MAIN)?;
            std::fs::write(source.join("go.mod"), format!("{GO_MOD} v{VERSION}\n"))?;
            phase::run("download the modules it needs", || {
                cargo::run(
                    go_in(&go, &source).args(["list", "-mod=mod", "-deps", "."]).stdout(std::process::Stdio::null()),
                )
            })?;
            compile(
                go_in(&go, &source)
                    .args(["build", "-v"])
                    .args(FLAGS)
                    .args(["-ldflags", "-s -w", "-o"])
                    .arg(draft.join("coredns"))
                    .arg("."),
            )?;
            Ok(std::fs::remove_dir_all(&source)?)
        })
    })?;
    Ok(place.join("coredns"))
}

/// Every other version follows from the one it names.
const GO_MOD: &str = "module culvert.io/coredns\n\ngo 1.26\n\nrequire github.com/coredns/coredns";
