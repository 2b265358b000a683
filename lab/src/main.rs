//! `culvert-lab`: the whole mesh on one machine.

mod cli;
mod completion;
mod story;
mod verbs;

fn main() -> std::process::ExitCode {
    cli::main()
}
