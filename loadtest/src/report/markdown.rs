//! `docs/performance.md`: made from an [`Outcome`], except what stands between the markers of notes, which is kept.

use crate::report::{
    DIRECT, Group, Line, baseline, distinct, figure, limits, lines, number, peer, planes, times, worse,
};
use crate::result::{Outcome, Row};

/// What a person writes begins after this line.
pub const NOTES: &str = "<!-- notes -->";
/// And ends before this one.
pub const NOTES_END: &str = "<!-- /notes -->";

/// The page. `earlier` is the page it replaces: its notes are kept.
pub fn render(outcome: &Outcome, earlier: Option<&str>) -> String {
    let lines = lines(&outcome.rows);
    let mut page = head(outcome);
    page.push_str(&limits_section(&lines));
    let notes = earlier.and_then(notes).unwrap_or("\n");
    page.push_str(&worse::section(&lines, notes));
    page.push_str(&format!("## Explanations and profiles\n{NOTES}{notes}{NOTES_END}\n\n"));
    for group in Group::ALL {
        let here: Vec<&Line<'_>> = lines.iter().filter(|line| Group::of(line.scenario, line.unit) == group).collect();
        if !here.is_empty() {
            page.push_str(&format!("## {}\n", group.title()));
            for scenario in distinct(here.iter().map(|line| line.scenario)) {
                page.push_str(&scenario_section(&outcome.rows, &here, scenario));
            }
        }
    }
    if !outcome.notes.is_empty() {
        page.push_str("## Notes of the run\n");
        outcome.notes.iter().for_each(|note| page.push_str(&format!("- {}\n", one_line(note))));
        page.push('\n');
    }
    page.push_str(&rule());
    page
}

/// What stands between the markers of an earlier page.
pub fn notes(page: &str) -> Option<&str> {
    let (_, after) = page.split_once(NOTES)?;
    Some(after.split_once(NOTES_END)?.0)
}

fn head(outcome: &Outcome) -> String {
    let mut page = format!(
        "# Performance\n\n\
         Made by `{}` in {:.0} s; do not edit outside the notes. Every figure is the median of interleaved runs with its smallest \
         and largest in brackets{}, and its ratio to `{DIRECT}`: the same pods and links without capture, in the same run. Only \
         ratios carry over to another machine. Proxy CPU is scheduler time of all proxy processes.\n\n| | |\n|---|---|\n",
        outcome.command,
        outcome.seconds,
        single(&outcome.rows)
    );
    for (name, value) in &outcome.machine {
        page.push_str(&format!("| {} | {} |\n", one_line(name), one_line(value)));
    }
    page + "\n"
}

/// Which scenarios are run once only, and so say nothing of their spread.
fn single(rows: &[Row]) -> String {
    let once = |scenario: &&str| rows.iter().filter(|row| row.scenario == **scenario).all(|row| row.runs <= 1);
    let once: Vec<&str> = distinct(rows.iter().map(|row| row.scenario.as_str())).into_iter().filter(once).collect();
    match once.is_empty() {
        true => String::new(),
        false => format!(" (one run alone, without a spread: {})", once.join(", ")),
    }
}

fn limits_section(lines: &[Line<'_>]) -> String {
    let mut page = format!(
        "## Limits\nThe peer is {}, measured on this kind of machine on another day.\n\n\
         | limit | scenario | path | bound | seen | peer | |\n|---|---|---|---|---|---|---|\n",
        peer::NAME
    );
    for one in limits::judge(lines) {
        let line = lines.iter().find(|line| {
            let peer = peer::find(line.scenario, line.path, line.metric);
            line.scenario == one.scenario
                && Some(line.path) == one.path.as_deref()
                && limits::LIMITS.iter().any(|limit| {
                    // A figure of another day says nothing beside a ratio.
                    let fits = peer.is_some_and(|peer| matches!(peer, peer::Value::Ratio(_)) == limit.over.is_some());
                    limit.name == one.name && limit.of.1 == line.metric && fits && !limit.aim
                })
        });
        page.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            one.name,
            one.scenario,
            one.path.as_deref().unwrap_or("–"),
            one.bound,
            one.seen.as_ref().map_or("–", |(seen, _)| seen),
            line.map(shown_peer).unwrap_or_default(),
            one.verdict()
        ));
    }
    page + "\n"
}

fn scenario_section(rows: &[Row], lines: &[&Line<'_>], scenario: &str) -> String {
    let of: Vec<&Line<'_>> = lines.iter().copied().filter(|line| line.scenario == scenario).collect();
    let mine: Vec<Row> = rows.iter().filter(|row| row.scenario == scenario).cloned().collect();
    let planes = planes(&mine);
    let heads: String = planes.iter().map(|plane| format!(" {plane} |")).collect();
    let mut page =
        format!("### {scenario}\n| path | metric |{heads} peer |\n|---|---|{}---|\n", "---|".repeat(planes.len()));
    for line in of {
        let cells: String = planes.iter().map(|plane| format!(" {} |", cell(line, plane))).collect();
        page.push_str(&format!("| {} | {} {} |{cells} {} |\n", line.path, line.metric, line.unit, shown_peer(line)));
    }
    page + "\n"
}

fn cell(line: &Line<'_>, plane: &str) -> String {
    let Some(row) = line.of(plane) else { return String::new() };
    match line.ratio(plane).filter(|_| plane != DIRECT) {
        Some(ratio) => format!("{} **{}**", figure(row), times(ratio)),
        None => figure(row),
    }
}

fn shown_peer(line: &Line<'_>) -> String {
    match peer::find(line.scenario, line.path, line.metric) {
        Some(peer::Value::Ratio(ratio)) => times(ratio),
        Some(peer::Value::Plain(value)) => number(value),
        None => String::new(),
    }
}

fn rule() -> String {
    format!(
        "## Has it become slower?\n\
         `cargo xtask bench --baseline FILE` compares with the JSON of an earlier run and ends with code {} when a figure is worse: \
         the mesh's p50, rate and throughput as ratios to direct, its CPU per operation as it is. Worse means: the range of runs \
         lies wholly on the worse side of the baseline's, and the median is worse by more than {:.0} %. Figures with fewer than {} \
         runs are left out. `cargo xtask bench --self-test` shows that 20 µs in the copy loop are found.\n",
        baseline::WORSE,
        baseline::TOLERANCE * 100.0,
        baseline::RUNS
    )
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    #[test]
    fn the_page_tells_figures_ratios_limits_and_peer() {
        let golden = include_str!("golden/performance.md");
        assert_eq!(render(&testing::outcome(), None), golden, "read the difference, then bless it");
    }

    #[test]
    fn a_scenario_of_one_run_is_named_as_one() {
        let rows = [1.0, 2.0].map(|value| {
            let values = if value == 1.0 { vec![1.0] } else { vec![1.0, 2.0] };
            Row::of(&format!("s-{value}"), "p", "mesh", "p50", "us", &values).expect("numbers")
        });
        assert_eq!(single(&rows), " (one run alone, without a spread: s-1)");
        assert_eq!(single(&rows[1..]), "");
    }

    #[test]
    fn what_a_person_wrote_outlives_the_next_generation() {
        let first = render(&testing::outcome(), None);
        let edited = first.replace(NOTES, &format!("{NOTES}\nA profile says why.\n"));
        let second = render(&testing::outcome(), Some(&edited));
        assert_eq!(notes(&second), Some("\nA profile says why.\n\n"));
        assert_eq!(render(&testing::outcome(), Some(&second)), second, "and again without change");
    }
}
