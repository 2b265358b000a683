//! `culvert-lab … | head`: whoever reads has seen enough, and the program ends without a word.

use std::process::{Command, Stdio};

#[test]
fn culvert_lab_ends_quietly_when_nobody_reads_its_output() {
    for args in [&["completion", "bash"][..], &["--help"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-lab"));
        let output = command.args(args).stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(0), "".into()), "{args:?}");
    }
}

#[test]
fn a_complaint_that_nobody_reads_changes_no_exit_status() {
    let status = |stderr: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-lab"));
        command.args(["status", "--name", "no-such-lab"]).stdout(Stdio::null()).stderr(stderr);
        command.status().expect("it runs").code()
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!((status(writer.into()), status(Stdio::null())), (Some(1), Some(1)));
}
