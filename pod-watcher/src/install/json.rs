//! Where the parts of a JSON text are, so that one part can be put in or taken out and every other byte stays as its owner wrote it:
//! order, white space, numbers, escapes. Works on texts that `serde_json` has accepted; knows nothing of what they mean.

use std::ops::Range;

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its key, unescaped.
    pub key: String,
    /// Where its value is.
    pub value: Range<usize>,
}

/// Members of the object that `text` is, in their order; `None` if it is no object, or no JSON at all.
pub fn members(text: &str) -> Option<Vec<Member>> {
    let mut scan = Scan::over(text, b'{')?;
    let mut members = Vec::new();
    while scan.more(b'}') {
        let key = scan.value();
        let key = serde_json::from_str(&text[key]).ok()?;
        scan.space();
        scan.at += 1; // the colon
        scan.space();
        members.push(Member { key, value: scan.value() });
    }
    Some(members)
}

/// Where the elements of the array that `text` is are; `None` if it is no array, or no JSON at all.
pub fn elements(text: &str) -> Option<Vec<Range<usize>>> {
    let mut scan = Scan::over(text, b'[')?;
    let mut elements = Vec::new();
    while scan.more(b']') {
        elements.push(scan.value());
    }
    Some(elements)
}

/// A place in a text that is known to be JSON.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// Behind the bracket that opens it.
    fn over(text: &'a str, open: u8) -> Option<Self> {
        serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
        let mut scan = Self { bytes: text.as_bytes(), at: 0 };
        scan.space();
        (scan.now() == open).then_some(())?;
        scan.at += 1;
        Some(scan)
    }

    fn now(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or_default()
    }

    fn space(&mut self) {
        while matches!(self.now(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    /// Steps onto the next part; `false` at the end.
    fn more(&mut self, close: u8) -> bool {
        self.space();
        if self.now() == b',' {
            self.at += 1;
            self.space();
        }
        self.at < self.bytes.len() && self.now() != close
    }

    /// Steps over a value: where it was.
    fn value(&mut self) -> Range<usize> {
        let from = self.at;
        let mut depth = 0_usize;
        loop {
            match self.now() {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ if depth > 0 => self.at += 1,
                _ => {
                    while !matches!(self.now(), b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')
                        && self.at < self.bytes.len()
                    {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return from..self.at;
            }
        }
    }

    fn string(&mut self) {
        self.at += 1;
        while self.at < self.bytes.len() {
            match self.now() {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            r#"[\\\\"\[\]{},: a-z\n\u{e4}\u{1f600}]{0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(r#"[\\\\"{,a-c]{0,3}"#, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_parts_are_what_serde_says_they_are(value in json(), pretty: bool) {
            let text = if pretty { format!("\n {value:#}\t") } else { value.to_string() };
            let read = |range: Range<usize>| serde_json::from_str::<Value>(&text[range]).expect("a whole value");
            let whole: Option<serde_json::Map<_, _>> =
                members(&text).map(|all| all.into_iter().map(|member| (member.key, read(member.value))).collect());
            prop_assert_eq!(whole.as_ref(), value.as_object());
            let whole: Option<Vec<Value>> = elements(&text).map(|all| all.into_iter().map(read).collect());
            prop_assert_eq!(whole.as_ref(), value.as_array());
        }

        #[test]
        fn what_is_no_json_has_no_parts_and_harms_nobody(text in r#"[\[\]{}":,\\ a1-]{0,12}"#) {
            if serde_json::from_str::<Value>(&text).is_err() {
                prop_assert_eq!((members(&text), elements(&text)), (None, None));
            } else {
                let _ = (members(&text), elements(&text));
            }
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_seen_twice_and_escapes_are_read() {
        let text = r#"{"a":1,"\u0061" : [ "}" ]}"#;
        let keys: Vec<_> =
            members(text).expect("an object").into_iter().map(|one| (one.key, &text[one.value])).collect();
        assert_eq!(keys, [("a".to_owned(), "1"), ("a".to_owned(), r#"[ "}" ]"#)]);
    }
}
