//! The project's commands: `cargo xtask lab` and `cargo xtask test` are all a newcomer needs; `cargo xtask bench` measures.
//!
//! Each installs what it needs (Debian packages, test tools) and says so before it does. Downloads and tools are kept outside
//! the checkout, keyed by version, see [`cache`].

mod bench;
mod cache;
mod cargo;
mod cluster;
mod coredns;
mod figures;
mod former;
mod image;
mod kubernetes;
mod lab;
mod manifests;
mod mutations;
mod packages;
mod phase;
mod postgresql;
mod sbom;
mod scale;
mod soak;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Culvert's project commands", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Two nodes on this machine with the whole mesh on them: builds, installs what is missing, runs, cleans up.
    ///
    /// Arguments are passed on: `cargo xtask lab --help` shows them all.
    #[command(disable_help_flag = true)]
    Lab {
        /// Arguments of the lab.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// All tests: unit, property and table tests beside the code, the real binaries in lab nodes, a short soak, a real Kubernetes (needs
    /// root).
    Test {
        /// Only these.
        #[arg(value_enum)]
        part: Option<test::Part>,
        /// Only tests whose name contains this.
        #[arg(long)]
        filter: Option<String>,
        /// Also tests that take minutes each, and outages of their full length; writes docs/reliability.md.
        #[arg(long)]
        long: bool,
        /// Makes docs/test-times.md anew: what each part and test took. Of a whole run only.
        #[arg(long, conflicts_with_all = ["part", "filter"])]
        write_docs: bool,
    },
    /// What the mesh costs, beside direct TCP and Envoy sidecars, in one run (needs root).
    ///
    /// Arguments are passed on to `culvert-loadtest run`: `cargo xtask bench --help` shows them all. Its own: `--write-docs`
    /// makes docs/performance.md anew, `--self-test` shows that a slower mesh is found.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the load test.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What ten thousand pods on two hundred nodes cost the control plane and a proxy, and a hundred thousand from files; writes
    /// docs/scale.md (needs root, some ten minutes).
    Scale,
    /// A mesh under constant change must be at the end what it was at the start: nothing in clear, nothing grown, nothing left (needs
    /// root). Ctrl-C takes everything down.
    Soak {
        /// How long; the growth of memory is asserted from ten minutes on.
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
    },
    /// Takes guards away one at a time and sees the named test turn red (needs root; some minutes, in a copy of the checkout).
    Mutations {
        /// Only guards whose text contains this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// A real two-node Kubernetes on this machine: `up`, `status`, `shell`, `down` (needs root; the first time builds Kubernetes).
    ///
    /// Arguments are passed on: `cargo xtask cluster --help` shows them all. `cargo xtask cluster parts` only makes what it needs.
    #[command(disable_help_flag = true)]
    Cluster {
        /// Arguments of the cluster.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The mesh's container images, as files that docker, containerd and kind read: `--release` as they are to be installed.
    ///
    /// Arguments are passed on: `cargo xtask image --help` shows them all.
    #[command(disable_help_flag = true)]
    Image {
        /// Arguments of the image writer.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Renders manifests/culvert.yaml from the chart beside it.
    Manifests {
        /// Only say whether it is what the chart renders; ends with 1 if not.
        #[arg(long)]
        check: bool,
    },
    /// Licences, sources and bans of all dependencies, by cargo-deny.
    Deny,
    /// Where downloads and tools are kept.
    Cache,
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Lab { args } => lab::run(&args),
        Verb::Test { part, filter, long, write_docs } => {
            test::run(&test::Wanted { part, filter: filter.as_deref(), long, write_docs })
        }
        Verb::Bench { args } => bench::run(args),
        Verb::Scale => scale::run(),
        Verb::Soak { minutes } => soak::run(minutes),
        Verb::Mutations { filter } => mutations::run(filter.as_deref()),
        Verb::Cluster { args } => cluster::run(&args),
        Verb::Image { args } => image::run(args),
        Verb::Manifests { check } => manifests::run(check),
        Verb::Deny => tools::deny(),
        Verb::Cache => cache::show(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            phase::say(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
