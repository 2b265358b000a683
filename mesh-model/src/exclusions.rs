//! What of a pod's traffic stays outside of capture, because the pod asks for it.

use std::collections::BTreeSet;
use std::fmt;

use ipnetwork::IpNetwork;

/// New connections of a pod that are left alone: neither redirected nor refused by its node. What goes out so has no identity at the
/// other side, which judges it as a stranger's; leaving out a port of its own opens that port to whoever can reach the pod, past every
/// policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Its own TCP ports.
    pub inbound_ports: BTreeSet<u16>,
    /// TCP ports of others, at any address.
    pub outbound_ports: BTreeSet<u16>,
    /// Addresses of others, at any port.
    pub outbound_ranges: BTreeSet<IpNetwork>,
}

impl Exclusions {
    /// Whether everything is captured.
    pub fn is_empty(&self) -> bool {
        self.inbound_ports.is_empty() && self.outbound_ports.is_empty() && self.outbound_ranges.is_empty()
    }
}

/// For people: `inbound ports 9090; outbound ports 5432, 6379; outbound to 10.0.0.0/8`. Empty where everything is captured.
impl fmt::Display for Exclusions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: ToString>(set: &BTreeSet<T>) -> String {
            set.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        let parts = [
            ("inbound ports", list(&self.inbound_ports)),
            ("outbound ports", list(&self.outbound_ports)),
            ("outbound to", list(&self.outbound_ranges)),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter(|(_, items)| !items.is_empty())
            .map(|(what, items)| format!("{what} {items}"))
            .collect();
        f.write_str(&said.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_said_in_words() {
        let mut exclusions = Exclusions::default();
        assert!(exclusions.is_empty() && exclusions.to_string().is_empty());
        exclusions.outbound_ports.extend([6379, 5432]);
        exclusions.outbound_ranges.insert("10.0.0.0/8".parse().expect("a range"));
        assert_eq!(exclusions.to_string(), "outbound ports 5432, 6379; outbound to 10.0.0.0/8");
        exclusions.inbound_ports.insert(9090);
        assert!(!exclusions.is_empty() && exclusions.to_string().starts_with("inbound ports 9090; "));
    }
}
