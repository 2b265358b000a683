//! What a person's program says. Whoever reads may have seen enough (`| head`): then it ends, quietly and well.

use std::fmt;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::{Error, Result};

/// Nobody reads the output any more.
#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ReaderGone {}

/// A line, or several, on standard output.
pub fn say(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        said => Ok(said?),
    }
}

/// The end of a program that could not go on: told on standard error, whether or not anybody reads that.
pub fn end(program: &str, error: &Error) -> ExitCode {
    if error.is::<ReaderGone>() {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(std::io::stderr(), "{program}: {error:#}");
    ExitCode::FAILURE
}
