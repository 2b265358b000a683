//! `culvert`: the person's tool. It grows with what there is to ask; what it cannot do yet, it does not offer.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

/// Culvert, a service mesh with one proxy per node.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print this build's version and the versions of the unix links that it speaks.
    Version {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script: `source <(culvert completion bash)`.
    Completion {
        /// For this shell.
        shell: Shell,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    /// GNU bash.
    Bash,
    /// fish.
    Fish,
    /// zsh.
    Zsh,
}

fn main() -> ExitCode {
    let text = match Cli::parse().command {
        Command::Version { json } => version(json),
        Command::Completion { shell } => completion(shell),
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert: print the answer: {error}");
            ExitCode::FAILURE
        }
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

/// Subcommands, from the same definition that parses them.
fn completion(shell: Shell) -> String {
    let command = Cli::command();
    let words: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).chain(["help"]).collect();
    let words = words.join(" ");
    match shell {
        Shell::Bash => format!("complete -W '{words}' culvert\n"),
        Shell::Fish => format!("complete -c culvert -f -n __fish_use_subcommand -a '{words}'\n"),
        Shell::Zsh => format!("#compdef culvert\n_culvert() {{ compadd {words} }}\ncompdef _culvert culvert\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_offers_every_subcommand_and_the_definition_is_sound() {
        Cli::command().debug_assert();
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            assert!(completion(shell).contains("version completion help"));
        }
        assert!(version(true).contains(r#""links":{"newest":1"#));
    }
}
