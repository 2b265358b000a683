//! Label selectors, as Kubernetes reads them: labels and expressions must all hold; nothing asked for selects everything.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// Whether the selector selects. `None`: an expression has an operator that does not exist.
pub(super) fn selects(selector: &LabelSelector, labels: &Labels) -> Option<bool> {
    let LabelSelector { match_labels, match_expressions } = selector;
    let mut all = match_labels.as_ref().is_none_or(|wanted| has_all(wanted, labels));
    for expression in match_expressions.iter().flatten() {
        all &= holds(expression, labels)?;
    }
    Some(all)
}

/// Whether the object has all of these labels.
pub(super) fn has_all(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn holds(expression: &LabelSelectorRequirement, labels: &Labels) -> Option<bool> {
    let LabelSelectorRequirement { key, operator, values } = expression;
    let value = labels.get(key);
    let listed = value.is_some_and(|value| values.iter().flatten().any(|one| one == value));
    Some(match operator.as_str() {
        "In" => listed,
        // Holds as well for an object without the label.
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn check(matching: &str, expressions: &[(&str, &str, &str)], object: &str, wanted: Option<bool>) {
        let selector = LabelSelector {
            match_labels: Some(labels(matching)),
            match_expressions: Some(
                expressions
                    .iter()
                    .map(|(key, operator, values)| LabelSelectorRequirement {
                        key: (*key).into(),
                        operator: (*operator).into(),
                        values: Some(values.split('|').map(Into::into).collect()),
                    })
                    .collect(),
            ),
        };
        assert_eq!(selects(&selector, &labels(object)), wanted, "{matching} {expressions:?} on {object}");
    }

    #[test]
    fn all_labels_and_all_expressions_must_hold() {
        check("", &[], "", Some(true));
        check("a=1", &[], "a=1,b=2", Some(true));
        check("a=1,b=3", &[], "a=1,b=2", Some(false));
        check("", &[("a", "In", "1|2")], "a=2", Some(true));
        check("", &[("a", "In", "1|2")], "", Some(false));
        check("", &[("a", "NotIn", "1|2")], "", Some(true));
        check("", &[("a", "NotIn", "1|2")], "a=1", Some(false));
        check("", &[("a", "Exists", "")], "a=", Some(true));
        check("", &[("a", "DoesNotExist", "")], "b=1", Some(true));
        check("b=1", &[("a", "Exists", "")], "a=1", Some(false));
        check("", &[("a", "Near", "1")], "a=1", None);
    }
}
