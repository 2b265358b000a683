//! Shell completion from the very definition of the command line: verbs, and the flags of each.

use anyhow::Result;
use clap::Command;

/// Prints a script for `bash` or `zsh` (which reads bash's after `bashcompinit`).
pub(crate) fn print(command: &Command, shell: &str) -> Result<()> {
    let head = if shell == "zsh" { "autoload -U +X bashcompinit && bashcompinit\n" } else { "" };
    lab::out::say(format!("{head}{}", bash(command)).trim_end())
}

fn bash(command: &Command) -> String {
    let visible: Vec<&Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let names: Vec<&str> = visible.iter().map(|c| c.get_name()).collect();
    let mut cases = String::new();
    for verb in &visible {
        let nested: Vec<&str> = verb.get_subcommands().map(Command::get_name).collect();
        let words = [flags(verb), nested.join(" ")].join(" ");
        cases += &format!("    {}) words=\"{}\" ;;\n", verb.get_name(), words.trim());
    }
    format!(
        "_culvert_lab() {{\n  local words\n  case \"${{COMP_WORDS[1]}}\" in\n{cases}    *) words=\"{} {}\" ;;\n  esac\n  \
         COMPREPLY=($(compgen -W \"$words\" -- \"${{COMP_WORDS[COMP_CWORD]}}\"))\n}}\ncomplete -o default -F _culvert_lab culvert-lab\n",
        names.join(" "),
        flags(command)
    )
}

fn flags(command: &Command) -> String {
    let long = command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long());
    long.map(|name| format!("--{name}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_verbs_are_not_offered() {
        let command =
            Command::new("x").subcommand(Command::new("seen")).subcommand(Command::new("internal").hide(true));
        let script = bash(&command);
        assert!(script.contains("seen") && !script.contains("internal"), "{script}");
    }
}
