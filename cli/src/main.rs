//! `culvert`: the person's tool. Each verb is a module: what it decides is pure, over what the API server and the daemons said; the
//! requests stand in `mesh.rs`. It holds nothing of its own and changes only what a verb's name says.

mod args;
mod ask;
mod check;
mod enroll;
mod failure;
mod install;
mod logs;
mod mesh;
mod names;
mod print;
mod ps;
mod rollout;
mod status;
mod view;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Common, Output, Verb};
use failure::Failure;
use install::uninstall::Captured;
use mesh::Mesh;
use print::Answer;

/// For a verb that only asks.
const ASKING: Duration = Duration::from_secs(30);
/// For a verb that waits until something has happened: images are pulled, nodes are taken one after the other.
const WAITING: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Failure::silent(format!("start: {error}"), "the machine has no resources left")),
    };
    let answer = runtime.block_on(within(cli));
    // Look-ups of names block a thread that nobody needs to wait for.
    runtime.shutdown_background();
    match answer {
        Ok(answer) => print(&answer),
        Err(failure) => failed(&failure),
    }
}

fn print(answer: &Answer) -> ExitCode {
    match std::io::stdout().lock().write_all(answer.text.as_bytes()) {
        // Whoever reads has seen enough: `culvert ps | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(error) => {
            return failed(&Failure::silent(format!("print the answer: {error}"), "see where the output goes"));
        }
        Ok(()) => {}
    }
    for silent in &answer.silent {
        print::tell(format_args!("culvert: {silent}"));
    }
    match (answer.silent.is_empty(), answer.well) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
        (false, _) => ExitCode::from(3),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    print::tell(format_args!("culvert: {failure}"));
    ExitCode::from(failure.status())
}

async fn within(cli: Cli) -> Result<Answer, Failure> {
    let patience = match &cli.verb {
        // Ends when it is interrupted; its requests have deadlines of their own.
        Verb::Logs { follow: true, .. } => return run(cli.verb, &cli.common, WAITING).await,
        // They say what they wait for when their time is over; this is only what is behind that.
        Verb::Install { .. } | Verb::Uninstall { .. } => cli.common.timeout.unwrap_or(WAITING),
        Verb::Enroll(enroll) | Verb::Unenroll(enroll) if enroll.wait => cli.common.timeout.unwrap_or(WAITING),
        _ => cli.common.timeout.unwrap_or(ASKING),
    };
    let late = || {
        Failure::silent(format!("no end within {patience:?}"), "give it more time (--timeout), or see culvert check")
    };
    tokio::time::timeout(patience + GRACE, run(cli.verb, &cli.common, patience)).await.map_err(|_| late())?
}

/// What a verb that watches its own time may need to say so: one request.
const GRACE: Duration = Duration::from_secs(15);

async fn run(verb: Verb, common: &Common, patience: Duration) -> Result<Answer, Failure> {
    match verb {
        Verb::Version { json } => Ok(Answer::well(version(json || common.output == Output::Json))),
        Verb::Completion { shell } => Ok(Answer::well(completion(shell))),
        Verb::Check { pre, manifest } => {
            check::run(&Mesh::connect(common, patience).await?, common.output, pre, &manifest).await
        }
        Verb::Install { manifest, dry_run, no_wait } => {
            let how = install::How { dry_run, wait: !no_wait };
            install::run(&Mesh::connect(common, patience).await?, &manifest, how).await
        }
        Verb::Uninstall { manifest, crds, unenroll, force, dry_run } => {
            let captured = match (unenroll, force) {
                (true, _) => Captured::Unenroll,
                (false, true) => Captured::Abandon,
                (false, false) => Captured::Refuse,
            };
            let how = install::uninstall::How { crds, captured, dry_run };
            install::uninstall::run(&Mesh::connect(common, patience).await?, &manifest, how).await
        }
        Verb::Status { brief } => status::run(&Mesh::connect(common, patience).await?, common.output, brief).await,
        Verb::Ps { all, brief, node } => {
            let which = ps::Which { all, brief, namespace: common.namespace.clone(), node };
            ps::run(&Mesh::connect(common, patience).await?, common.output, &which).await
        }
        Verb::Identity { pod } => view::identity(&Mesh::connect(common, patience).await?, common.output, &pod).await,
        Verb::Config(target) => {
            view::run(&Mesh::connect(common, patience).await?, common.output, "config", &target).await
        }
        Verb::Connections(target) => {
            view::run(&Mesh::connect(common, patience).await?, common.output, "connections", &target).await
        }
        Verb::Certificates(target) => {
            view::run(&Mesh::connect(common, patience).await?, common.output, "certificates", &target).await
        }
        Verb::Stats(target) => {
            view::run(&Mesh::connect(common, patience).await?, common.output, "stats", &target).await
        }
        Verb::Logs { component, node, tail, follow, previous } => {
            let what = logs::What { component, node, tail, follow, previous };
            logs::run(&Mesh::connect(common, patience).await?, &what).await
        }
        Verb::Enroll(args) => enroll::run(&Mesh::connect(common, patience).await?, common.output, &args, true).await,
        Verb::Unenroll(args) => enroll::run(&Mesh::connect(common, patience).await?, common.output, &args, false).await,
    }
}

fn version(json: bool) -> String {
    let (version, oldest, newest) =
        (env!("CARGO_PKG_VERSION"), mesh_api::link::OLDEST_VERSION, mesh_api::link::VERSION);
    if json {
        format!("{}\n", serde_json::json!({ "version": version, "links": { "oldest": oldest, "newest": newest } }))
    } else {
        format!("culvert {version}, link versions {oldest} to {newest}\n")
    }
}

fn completion(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "culvert", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_offers_every_verb_and_flags() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Fish, clap_complete::Shell::Zsh] {
            let script = completion(shell);
            for verb in Cli::command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell}: {}", verb.get_name());
            }
            assert!(script.contains("kubeconfig") && script.contains("dry-run"), "{shell}");
        }
        assert!(version(true).contains(r#""links":{"newest":1"#));
    }
}
