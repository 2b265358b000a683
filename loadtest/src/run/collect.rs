//! Figures of all samples, put together to rows.

use std::collections::BTreeMap;

use crate::result::Row;
use crate::scenario::Figure;

/// Values by (scenario, path, plane, metric, unit), in the order in which they first came.
#[derive(Default)]
pub(super) struct Figures {
    order: Vec<Key>,
    values: BTreeMap<Key, Vec<f64>>,
}

type Key = (String, String, String, String, &'static str);

impl Figures {
    /// Adds a sample.
    pub(super) fn add(&mut self, scenario: &str, path: &str, plane: &str, sample: Vec<Figure>) {
        for Figure { metric, unit, value } in sample {
            let key = (scenario.to_owned(), path.to_owned(), plane.to_owned(), metric, unit);
            if !self.values.contains_key(&key) {
                self.order.push(key.clone());
            }
            self.values.entry(key).or_default().push(value);
        }
    }

    /// The rows so far.
    pub(super) fn rows(&self) -> Vec<Row> {
        let row = |key: &Key| {
            let (scenario, path, plane, metric, unit) = key;
            Row::of(scenario, path, plane, metric, unit, self.values.get(key)?)
        };
        self.order.iter().filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_figure_become_one_row_in_the_order_they_came() {
        let mut figures = Figures::default();
        for value in [3.0, 1.0, 2.0] {
            figures.add(
                "s",
                "p",
                "mesh",
                vec![Figure::new("rate", "1/s", value), Figure::new("p50", "us", value * 10.0)],
            );
        }
        figures.add("s", "p", "none", vec![Figure::new("rate", "1/s", 9.0)]);
        let rows = figures.rows();
        let said: Vec<_> =
            rows.iter().map(|row| (row.plane.as_str(), row.metric.as_str(), row.median, row.runs)).collect();
        assert_eq!(said, [("mesh", "rate", 2.0, 3), ("mesh", "p50", 20.0, 3), ("none", "rate", 9.0, 1)]);
    }
}
