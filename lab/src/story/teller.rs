//! The voice of the story: a line per step, colours where somebody looks, a table at the end, JSON for programs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::verbs::table;

pub(crate) struct Teller {
    steps: Vec<Step>,
    figures: BTreeMap<String, f64>,
    json: Option<PathBuf>,
    colours: bool,
    start: Instant,
}

struct Step {
    name: String,
    ok: bool,
    detail: String,
    seconds: f64,
}

impl Teller {
    pub(crate) fn new(json: Option<PathBuf>) -> Teller {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Teller { steps: Vec::new(), figures: BTreeMap::new(), json, colours, start: Instant::now() }
    }

    /// Does a step and tells how it went; `None` when it failed, which never ends the story by itself.
    pub(crate) fn step<T>(&mut self, name: &str, work: impl FnOnce(&mut Teller) -> Result<(T, String)>) -> Option<T> {
        let start = Instant::now();
        let done = work(self);
        // What fails because the lab is being taken down is not told.
        lab::interrupt::wait_if_stopping();
        let seconds = start.elapsed().as_secs_f64();
        let (value, ok, detail) = match done {
            Ok((value, detail)) => (Some(value), true, detail),
            Err(error) => (None, false, format!("{error:#}")),
        };
        let mark = if ok { self.paint("32", "✓") } else { self.paint("31;1", "✗") };
        let name_shown = self.paint("1", name);
        let time = self.paint("2", &format!("{seconds:.1} s"));
        self.say(&format!("{mark} {name_shown}  {time}"));
        for line in detail.lines() {
            self.say(&format!("    {line}"));
        }
        self.steps.push(Step { name: name.to_owned(), ok, detail, seconds });
        value
    }

    /// A number of the outcome.
    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    pub(crate) fn say(&self, text: &str) {
        // Nobody reads any more: the lab still has to be taken down.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The table, the file, the exit code.
    pub(crate) fn finish(self) -> Result<ExitCode> {
        let ok = !self.steps.is_empty() && self.steps.iter().all(|s| s.ok);
        let mut steps = table(&["step", "", "s"]);
        for step in &self.steps {
            steps.add_row(vec![
                step.name.clone(),
                if step.ok { "ok" } else { "FAILED" }.into(),
                format!("{:.1}", step.seconds),
            ]);
        }
        self.say(&format!("\n{steps}"));
        if !self.figures.is_empty() {
            let mut figures = table(&["figure", "value"]);
            for (name, value) in &self.figures {
                figures.add_row(vec![name.clone(), format!("{value:.2}")]);
            }
            self.say(&figures.to_string());
        }
        let verdict =
            if ok { self.paint("32;1", "every step held") } else { self.paint("31;1", "not every step held") };
        self.say(&format!("{verdict}, {:.1} s in all", self.start.elapsed().as_secs_f64()));
        if let Some(path) = &self.json {
            let steps: Vec<_> = self
                .steps
                .iter()
                .map(|s| json!({ "name": s.name, "ok": s.ok, "detail": s.detail, "seconds": s.seconds }))
                .collect();
            let text = format!("{:#}\n", json!({ "ok": ok, "steps": steps, "figures": self.figures }));
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
