//! Answers of the admin socket as tables for people. A table is a list of columns, each with the key it shows, over the rows that the
//! JSON form has too: the two forms cannot tell different things.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// The key in each row; levels separated by dots.
    pub key: &'static str,
}

/// A column with this heading, of this key.
pub const fn column(title: &'static str, key: &'static str) -> Column {
    Column { title, key }
}

/// The rows as columns, each as wide as its widest cell; one line per row, for `grep` and `sort`.
pub fn render(columns: &[Column], rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.title));
    for row in rows {
        table.add_row(columns.iter().map(|column| cell(at(row, column.key))));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim().to_owned()).collect();
    format!("{}\n", lines.join("\n"))
}

/// A value as a cell. Text of others is made harmless for a terminal.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(" "),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(" ")
        }
    }
}

fn at<'v>(row: &'v Value, key: &str) -> &'v Value {
    key.split('.').fold(row, |value, key| &value[key])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_columns_and_each_stays_on_one_line() {
        let rows = [
            json!({ "name": "shop/cart", "of": { "open": 3 }, "fine": true, "ips": ["198.18.1.2", "fd77::2"] }),
            json!({ "name": "a\nb\u{1b}[2J", "fine": false, "ips": [] }),
        ];
        let text = render(
            &[column("NAME", "name"), column("OPEN", "of.open"), column("FINE", "fine"), column("ADDRESSES", "ips")],
            &rows,
        );
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["NAME", "OPEN", "FINE", "ADDRESSES"]);
        assert_eq!(words[1], ["shop/cart", "3", "yes", "198.18.1.2", "fd77::2"]);
        assert_eq!(words[2], ["a\u{fffd}b\u{fffd}[2J", "-", "no", "-"]);
        assert_eq!(words.len(), 3);
    }
}
