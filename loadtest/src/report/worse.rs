//! Where the mesh is worse than the peer, and whether the page says why.
//!
//! The reasons are a person's: lines of the notes that name what they explain before their first colon, `- connect-16 cross-node
//! one-core rate, p50: ...`. They are kept when the page is made anew, so a figure that turned worse since has none yet, and the
//! page says so.

use crate::report::{Line, more_is_better, number, peer, times};

/// The words of a path, by what they say of it.
const PATH: [&[&str]; 3] = [&["same-node", "cross-node"], &["v4", "v6"], &["one-core", "two-cores"]];

/// Every figure that is worse: ratios to direct, which carry over to another day, and those that have none.
pub(super) fn section(lines: &[Line<'_>], notes: &str) -> String {
    let (mut ratios, mut plain) = (String::new(), String::new());
    for line in lines {
        let worse = |ours: f64, peer: f64| if more_is_better(line.unit) { ours < peer } else { ours > peer };
        let why = if explained(line, notes) { "" } else { " (**not explained**)" };
        let what = format!("- {} {} {}", line.scenario, line.path, line.metric);
        match peer::find(line.scenario, line.path, line.metric) {
            Some(peer::Value::Ratio(peer)) => {
                if let Some(ours) = line.ratio("mesh").filter(|ours| worse(*ours, peer)) {
                    ratios.push_str(&format!("{what}: {} to direct, the peer {}{why}\n", times(ours), times(peer)));
                }
            }
            Some(peer::Value::Plain(peer)) => {
                if let Some(row) = line.of("mesh").filter(|row| worse(row.median, peer)) {
                    let (ours, peer) = (number(row.median), number(peer));
                    plain.push_str(&format!("{what}: {ours} {}, the peer {peer}{why}\n", line.unit));
                }
            }
            None => {}
        }
    }
    let mut page = match ratios.is_empty() {
        true => "No measured ratio to direct is worse than the peer's.\n\n".to_owned(),
        false => format!("Worse than the peer's ratio to direct (why: see below):\n\n{ratios}\n"),
    };
    if !plain.is_empty() {
        page.push_str(&format!("Worse than the peer's figure of another day, without a ratio:\n\n{plain}\n"));
    }
    page
}

/// Whether a line of the notes names it.
fn explained(line: &Line<'_>, notes: &str) -> bool {
    notes.lines().filter_map(|note| note.strip_prefix("- ")?.split_once(": ")).any(|(names, _)| {
        let names: Vec<&str> = names.split([' ', ',']).collect();
        let path = |words: &&[&str]| {
            let mut named = words.iter().filter(|word| names.contains(word)).peekable();
            named.peek().is_none() || named.any(|word| line.path.contains(word))
        };
        names.contains(&line.scenario) && names.contains(&line.metric) && PATH.iter().all(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{lines, testing};

    fn section_with(notes: &str) -> String {
        section(&lines(&testing::outcome().rows), notes)
    }

    #[test]
    fn a_figure_is_explained_by_a_line_that_names_it_and_by_no_other() {
        let worse = "- exchange-1KiB-1 cross-node-v4-one-core p50: 4.00x to direct, the peer 2.29x";
        for names in ["exchange-1KiB-1 p50", "exchange-1KiB-1, connect-1 cross-node one-core p99, p50"] {
            assert!(section_with(&format!("- {names}: it waits\n")).contains(&format!("{worse}\n")), "{names}");
        }
        for names in ["", "exchange-1KiB-1 p99", "exchange-1KiB-64 p50", "exchange-1KiB-1 two-cores p50"] {
            let said = section_with(&format!("- {names}: it waits\n"));
            assert!(said.contains(&format!("{worse} (**not explained**)\n")), "{names}");
        }
    }

    #[test]
    fn a_time_that_is_worse_is_told_beside_the_ratios() {
        let slow = [testing::row("cut-1000", "same-node-v4-one-core", "mesh", "cut", "ms", [80.0, 81.0, 82.0])];
        let said = section(&lines(&slow), "- cut-1000 cut: the source waits\n");
        assert!(said.ends_with("\n- cut-1000 same-node-v4-one-core cut: 81.0 ms, the peer 46.0\n\n"), "{said}");
    }
}
