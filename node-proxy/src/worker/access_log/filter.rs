//! The filter language: `KEY=VALUE[,VALUE…]` or `KEY!=VALUE[,VALUE…]`, separated by spaces; all must hold. Several filters: any.
//!
//! Closed on purpose: seven keys, equality alone, values checked where they come from a closed set. What cannot be read is refused at
//! start with its flaw named; a filter never silently means something else.

use std::str::FromStr;

use mesh_model::{Identity, Reason};

use super::super::connection::Direction;
use super::line::{Event, Line, Outcome};

/// What a term looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Direction,
    Namespace,
    Pod,
    Identity,
    Service,
    Reason,
    Outcome,
}

const KEYS: [(&str, Key); 7] = [
    ("direction", Key::Direction),
    ("namespace", Key::Namespace),
    ("pod", Key::Pod),
    ("identity", Key::Identity),
    ("service", Key::Service),
    ("reason", Key::Reason),
    ("outcome", Key::Outcome),
];

/// A filter cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// Nothing in it: it would pass everything, which nobody asks for by a filter.
    #[error("the filter is empty")]
    Empty,
    /// A term without `=`.
    #[error("{0:?} is not of the form KEY=VALUE or KEY!=VALUE")]
    Form(String),
    /// A key that is not known.
    #[error("{0:?} is no key; there are: direction, namespace, pod, identity, service, reason, outcome")]
    Key(String),
    /// `KEY=` or `KEY=a,,b`.
    #[error("{0:?} has an empty value")]
    NoValue(String),
    /// A value that its key can never have.
    #[error("{value:?} is no {key}; {hint}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be one.
        hint: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: Key,
    // Whether one of the values must be met, or none may be.
    wanted: bool,
    values: Vec<String>,
}

/// One filter: all its terms must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Term>);

/// Several: any must pass; none at all passes everything.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Any of these.
    pub fn any_of(filters: Vec<Filter>) -> Self {
        Self(filters)
    }

    /// Whether the line is wanted.
    pub fn pass(&self, line: &Line) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.0.iter().all(|term| term.holds(line)))
    }
}

impl FromStr for Filter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        let terms: Vec<Term> = text.split_whitespace().map(term).collect::<Result<_, _>>()?;
        if terms.is_empty() { Err(BadFilter::Empty) } else { Ok(Self(terms)) }
    }
}

fn term(text: &str) -> Result<Term, BadFilter> {
    let (left, values) = text.split_once('=').ok_or_else(|| BadFilter::Form(text.to_owned()))?;
    let (name, wanted) = left.strip_suffix('!').map_or((left, true), |name| (name, false));
    let known = KEYS.into_iter().find(|(known, _)| *known == name);
    let (name, key) = known.ok_or_else(|| BadFilter::Key(name.to_owned()))?;
    let values: Vec<String> = values.split(',').map(str::to_owned).collect();
    for value in &values {
        if value.is_empty() {
            return Err(BadFilter::NoValue(text.to_owned()));
        }
        key.check(value).map_err(|hint| BadFilter::Value { key: name, value: value.clone(), hint })?;
    }
    Ok(Term { key, wanted, values })
}

impl Key {
    /// Whether the key can have this value at all; else what it could have.
    fn check(self, value: &str) -> Result<(), String> {
        let (fine, hint) = match self {
            Key::Direction => {
                let all = Direction::ALL.map(Direction::as_str);
                (all.contains(&value), format!("there are: {}", all.join(", ")))
            }
            Key::Outcome => {
                let all = Outcome::ALL.map(Outcome::as_str);
                (all.contains(&value), format!("there are: {}", all.join(", ")))
            }
            Key::Reason => {
                let all: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
                (all.contains(&value), format!("there are: {}", all.join(", ")))
            }
            Key::Namespace => (!value.contains('/'), "a namespace has no slash".to_owned()),
            Key::Pod => (value.split('/').count() == 2, "a pod is NAMESPACE/NAME".to_owned()),
            Key::Identity => {
                let hint = "an identity is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT";
                (Identity::parse(value).is_ok(), hint.to_owned())
            }
            Key::Service => (value.split('/').count() <= 2, "a service is HOSTNAME or NAMESPACE/HOSTNAME".to_owned()),
        };
        if fine { Ok(()) } else { Err(hint) }
    }

    /// Whether the line has this value, at either end where there are two.
    fn met(self, line: &Line, value: &str) -> bool {
        let identities = [&line.source, &line.target].into_iter().flatten();
        let mut pods = [&line.source_pod, &line.workload].into_iter().flatten();
        match self {
            Key::Direction => line.direction.as_str() == value,
            Key::Outcome => matches!(line.event, Event::End(outcome) if outcome.as_str() == value),
            Key::Reason => line.reason.is_some_and(|reason| reason.as_str() == value),
            Key::Namespace => {
                pods.any(|pod| pod.namespace == value)
                    || identities.map(Identity::namespace).any(|namespace| namespace == value)
                    || line.service.as_ref().is_some_and(|service| service.namespace == value)
            }
            Key::Pod => pods.any(|pod| value.split_once('/') == Some((&pod.namespace, &pod.name))),
            Key::Identity => identities.into_iter().any(|identity| is(identity, value)),
            Key::Service => line.service.as_ref().is_some_and(|service| match value.split_once('/') {
                Some((namespace, hostname)) => service.namespace == namespace && service.hostname == hostname,
                None => service.hostname == value,
            }),
        }
    }
}

/// Whether this text, checked when the filter was read, is this identity; nothing is allocated for a comparison per line.
fn is(identity: &Identity, text: &str) -> bool {
    let mut parts = text.strip_prefix("spiffe://").unwrap_or_default().split('/');
    let mut next = || parts.next().unwrap_or_default();
    let (domain, _ns, namespace, _sa, account) = (next(), next(), next(), next(), next());
    identity.trust_domain().as_str() == domain
        && identity.namespace() == namespace
        && identity.service_account() == account
}

impl Term {
    fn holds(&self, line: &Line) -> bool {
        self.values.iter().any(|value| self.key.met(line, value)) == self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    #[track_caller]
    fn check(filters: &[&str], line: &Line, passes: bool) {
        let filters = Filters::any_of(filters.iter().map(|text| text.parse().expect("filter")).collect());
        assert_eq!(filters.pass(line), passes, "{filters:?}");
    }

    #[test]
    fn every_key_is_met_by_what_it_names_and_by_nothing_else() {
        for (met, not) in [
            ("direction=outbound", "direction=inbound,inbound-tunnel"),
            ("namespace=shop", "namespace=bank"),
            ("pod=shop/cart-1", "pod=shop/cart"),
            ("identity=spiffe://cluster.local/ns/shop/sa/web", "identity=spiffe://cluster.local/ns/shop/sa/we"),
            ("service=cart.shop.svc.cluster.local", "service=cart"),
            ("service=shop/cart.shop.svc.cluster.local", "service=bank/cart.shop.svc.cluster.local"),
            ("reason=PolicyDenied", "reason=Reset"),
            ("outcome=refused", "outcome=ok,ended"),
        ] {
            check(&[met], &line(), true);
            check(&[not], &line(), false);
            check(&[&met.replacen('=', "!=", 1)], &line(), false);
            check(&[&not.replacen('=', "!=", 1)], &line(), true);
        }
    }

    #[test]
    fn terms_are_all_and_filters_any() {
        check(&["outcome=refused namespace=shop"], &line(), true);
        check(&["outcome=refused namespace=bank"], &line(), false);
        check(&["outcome=ok", "namespace=bank", "pod=shop/web-0"], &line(), true);
        check(&["outcome=ok,refused"], &line(), true);
        check(&[], &line(), true);
    }

    #[test]
    fn a_start_line_has_no_outcome_and_a_finished_one_no_reason() {
        check(&["outcome=ok"], &Line { event: Event::Start, ..line() }, false);
        check(&["reason=PolicyDenied"], &Line { reason: None, ..line() }, false);
    }

    #[test]
    fn a_flaw_is_refused_and_named() {
        for (text, flaw) in [
            ("", "empty"),
            ("  ", "empty"),
            ("refused", "KEY=VALUE"),
            ("port=80", "\"port\" is no key; there are: direction,"),
            ("outcome=", "empty value"),
            ("outcome=ok,", "empty value"),
            ("outcome=denied", "\"denied\" is no outcome; there are: ok, ended, refused"),
            ("direction=in", "inbound-tunnel"),
            ("reason=policydenied", "PolicyDenied"),
            ("pod=cart", "NAMESPACE/NAME"),
            ("namespace=a/b", "no slash"),
            ("identity=cart", "spiffe://"),
            ("outcome==ok", "\"=ok\" is no outcome"),
        ] {
            let error = text.parse::<Filter>().expect_err(text).to_string();
            assert!(error.contains(flaw), "{text:?}: {error}");
        }
    }
}
