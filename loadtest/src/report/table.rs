//! The report on a terminal: one table per scenario, planes side by side.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::report::{DIRECT, distinct, figure, limits, lines, planes, times};
use crate::result::{Outcome, Row};

/// All tables, the limits, the notes.
pub fn render(outcome: &Outcome) -> String {
    let mut text = String::new();
    for scenario in distinct(outcome.rows.iter().map(|row| row.scenario.as_str())) {
        text.push_str(&format!("{scenario}\n{}\n\n", scenario_table(&outcome.rows, scenario)));
    }
    text.push_str(&format!("limits\n{}\n", limits_table(&outcome.rows)));
    for note in &outcome.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn scenario_table(rows: &[Row], scenario: &str) -> Table {
    let rows: Vec<Row> = rows.iter().filter(|row| row.scenario == scenario).cloned().collect();
    let planes = planes(&rows);
    let mut header = vec!["path".to_owned(), "metric".to_owned()];
    for plane in &planes {
        header.push((*plane).to_owned());
        if *plane != DIRECT {
            header.push("to none".to_owned());
        }
    }
    let mut table = plain();
    table.set_header(header);
    for line in lines(&rows) {
        let mut cells = vec![line.path.to_owned(), format!("{} {}", line.metric, line.unit)];
        for plane in &planes {
            cells.push(line.of(plane).map(figure).unwrap_or_default());
            if *plane != DIRECT {
                cells.push(line.ratio(plane).map(times).unwrap_or_default());
            }
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn limits_table(rows: &[Row]) -> Table {
    let mut table = plain();
    table.set_header(["limit", "scenario", "path", "bound", "seen", ""]);
    for one in limits::judge(&lines(rows)) {
        let verdict = one.verdict().trim_matches('*').to_owned();
        let seen = one.seen.map(|(seen, _)| seen).unwrap_or_default();
        table.add_row([
            one.name.to_owned(),
            one.scenario.to_owned(),
            one.path.unwrap_or_default(),
            one.bound,
            seen,
            verdict,
        ]);
    }
    table
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    #[test]
    fn planes_stand_side_by_side_with_their_ratio_and_spread() {
        let golden = include_str!("golden/table.txt");
        assert_eq!(render(&testing::outcome()), golden, "read the difference, then bless it");
    }
}
