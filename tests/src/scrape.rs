//! A metrics page as a test reads it: series with their labels, nothing of Prometheus' own rules.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One series.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Its name.
    pub(crate) name: String,
    labels: BTreeMap<String, String>,
    /// Its value.
    pub(crate) value: f64,
}

impl Series {
    /// A label's value; empty when it has none of this name.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// All of them.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }
}

/// Every series of a page in text format 0.0.4.
pub(crate) fn series(page: &str) -> Result<Vec<Series>> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| read(line).with_context(|| line.to_owned())).collect()
}

fn read(line: &str) -> Option<Series> {
    let (what, value) = line.rsplit_once(' ')?;
    let (name, rest) = what.split_once('{').unwrap_or((what, "}"));
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}')?;
    while !rest.is_empty() {
        let (key, quoted) = rest.split_once("=\"")?;
        let end = closing_quote(quoted)?;
        labels.insert(key.to_owned(), quoted[..end].to_owned());
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    Some(Series { name: name.to_owned(), labels, value: value.parse().ok()? })
}

/// Where a label's value ends: at a quote that is not escaped.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[test]
fn a_page_is_read_series_by_series() {
    let page = "# HELP a x\na 1\nb{c=\"d\",e=\"f\\\"g,h=\\\\\"} 2.5\nc_bucket{le=\"+Inf\"} 3\n";
    let read = series(page).expect("well formed");
    assert_eq!(read.len(), 3);
    assert_eq!((read[1].name.as_str(), read[1].label("c"), read[1].value), ("b", "d", 2.5));
    assert_eq!(read[1].label("e"), "f\\\"g,h=\\\\");
    assert_eq!((read[2].label("le"), read[0].label("le")), ("+Inf", ""));
    assert!(series("a{b=\"c} 1").is_err());
}
