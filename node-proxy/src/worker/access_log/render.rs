//! Lines as text or JSON, straight into the batch that is written: no string of its own per line or value.
//!
//! Both forms carry the same keys in the same order, and both stay on one line whatever a value holds.

use std::fmt::{self, Display, Write};

use super::args::AccessLogFormat;
use super::clock::Clock;
use super::line::{Line, Value};

/// Renders lines in one form.
#[derive(Debug)]
pub struct Renderer {
    format: AccessLogFormat,
    clock: Clock,
}

impl Renderer {
    /// In this form.
    pub fn new(format: AccessLogFormat) -> Self {
        Self { format, clock: Clock::default() }
    }

    /// Appends the line and its end.
    pub fn render(&mut self, line: &Line, out: &mut String) {
        // Writing to a String cannot fail.
        match self.format {
            AccessLogFormat::Off => {}
            AccessLogFormat::Text => {
                out.push_str("access");
                line.each(|key, value| {
                    out.push(' ');
                    out.push_str(key);
                    out.push('=');
                    let _ = match value {
                        Value::Number(number) => write!(out, "{number}"),
                        Value::Time(time) => self.clock.write(time, out),
                        Value::Text(text) => bare_or_quoted(text, out),
                    };
                });
                out.push('\n');
            }
            AccessLogFormat::Json => {
                out.push_str("{\"log\":\"access\"");
                line.each(|key, value| {
                    out.push_str(",\"");
                    out.push_str(key);
                    out.push_str("\":");
                    let _ = match value {
                        Value::Number(number) => write!(out, "{number}"),
                        Value::Time(time) => {
                            out.push('"');
                            let written = self.clock.write(time, out);
                            out.push('"');
                            written
                        }
                        Value::Text(text) => quoted(text, out),
                    };
                });
                out.push_str("}\n");
            }
        }
    }
}

/// Bare where it reads as one word, else as a JSON string.
fn bare_or_quoted(text: &dyn Display, out: &mut String) -> fmt::Result {
    let start = out.len();
    write!(out, "{text}")?;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if out.len() > start && out.bytes().skip(start).all(plain) {
        return Ok(());
    }
    out.truncate(start);
    quoted(text, out)
}

fn quoted(text: &dyn Display, out: &mut String) -> fmt::Result {
    out.push('"');
    write!(Escape(out), "{text}")?;
    out.push('"');
    Ok(())
}

/// RFC 8259, 7; every control character, also those above ASCII, which a terminal might obey.
struct Escape<'a>(&'a mut String);

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c == '"' || c == '\\' || c.is_control()) {
            self.0.push_str(&rest[..at]);
            let mut left = rest[at..].chars();
            match left.next() {
                Some('\n') => self.0.push_str("\\n"),
                Some('\r') => self.0.push_str("\\r"),
                Some('\t') => self.0.push_str("\\t"),
                Some(c) if c.is_control() => write!(self.0, "\\u{:04x}", u32::from(c))?,
                Some(c) => self.0.extend(['\\', c]),
                None => {}
            }
            rest = left.as_str();
        }
        self.0.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::KEYS;
    use super::super::tests::line;
    use super::*;

    fn rendered(format: AccessLogFormat, line: &Line) -> String {
        let mut text = String::new();
        Renderer::new(format).render(line, &mut text);
        text
    }

    #[test]
    fn text_and_json_carry_the_same_and_stay_on_one_line() {
        assert_eq!(
            rendered(AccessLogFormat::Text, &line()),
            "access time=2024-02-29T12:34:56.000007Z id=4bf92f3577b34da6a3ce929d0e0e4736 event=end outcome=refused \
             direction=outbound client=198.18.1.5:40000 destination=198.18.128.9:80 endpoint=198.18.2.7:8080 \
             source_identity=spiffe://cluster.local/ns/shop/sa/web source_pod=shop/web-0 \
             destination_identity=spiffe://cluster.local/ns/shop/sa/cart workload=shop/cart-1 \
             service=shop/cart.shop.svc.cluster.local route=tunnel security=mutual_tls policy=shop/only-web \
             dry_run_denied=shop/later reason=PolicyDenied cause=\"far end: \\\"no\\\"\\nreally\" sent=10 received=20 \
             served_us=10 judged_us=20 connected_us=30 first_byte_us=40 duration_us=1500\n"
        );
        let json = rendered(AccessLogFormat::Json, &line());
        let value: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
        assert_eq!(value["policy"], "shop/only-web");
        assert_eq!(value["cause"], "far end: \"no\"\nreally");
        assert_eq!(value["duration_us"], 1500);
        assert_eq!(json.matches('\n').count(), 1);
    }

    #[test]
    fn a_line_with_everything_has_every_key_in_order_in_both_forms() {
        let mut keys = Vec::new();
        line().each(|key, _| keys.push(key));
        assert_eq!(keys, KEYS);
        let (text, json) = (rendered(AccessLogFormat::Text, &line()), rendered(AccessLogFormat::Json, &line()));
        let mut last = (0, 0);
        for key in KEYS {
            let found = |all: &str, key: &str| all.find(key).unwrap_or_else(|| panic!("{key:?} in {all}"));
            let now = (found(&text, &format!(" {key}=")), found(&json, &format!(",\"{key}\":")));
            assert!(now.0 > last.0 && now.1 > last.1, "{key}");
            last = now;
        }
    }

    #[test]
    fn the_document_lists_the_keys_that_the_code_writes() {
        let document = include_str!("../../../../docs/access-log.md");
        let table =
            document.split("## Keys").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section Keys");
        let named: Vec<&str> = table.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
        assert_eq!(named, KEYS);
    }

    #[test]
    fn no_value_can_end_a_line_or_a_string() {
        for foreign in ["a\nb", "a\r\nb", "\u{1b}[2J", "quote\" back\\slash", "\u{85}\u{9b}", "", "tab\t", "ü"] {
            let line = Line { cause: Some(foreign.to_owned()), ..line() };
            let json = rendered(AccessLogFormat::Json, &line);
            let value: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
            assert_eq!(value["cause"], foreign);
            for text in [json, rendered(AccessLogFormat::Text, &line)] {
                assert_eq!(text.matches(char::is_control).collect::<String>(), "\n", "{text:?}");
            }
        }
    }
}
