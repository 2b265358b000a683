//! Between whom traffic flows, over which family, and on which cores: the `path` column of every figure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, bail};

/// Where the server pod is, seen from the client pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On the client's node.
    SameNode,
    /// On the other node.
    CrossNode,
}

/// The IP family of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which programs are pinned to which core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// Client, server and every proxy on CPU 0.
    OneCore,
    /// Client and its proxy on CPU 0, server and its proxy on CPU 1; a proxy that is both ends' counts as the client's.
    TwoCores,
}

/// Client or server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever opens the connection.
    Client,
    /// Whoever accepts it.
    Server,
}

/// One path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// Where the server is.
    pub place: Place,
    /// Family.
    pub family: Family,
    /// Pinning.
    pub layout: Layout,
}

impl Family {
    /// Whether an address is of this family.
    pub fn is(self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self == Family::V4)
    }
}

impl Layout {
    /// The core of a side.
    pub fn core(self, side: Side) -> usize {
        match (self, side) {
            (Layout::TwoCores, Side::Server) => 1,
            _ => 0,
        }
    }
}

impl Path {
    /// All eight, the plainest first.
    pub fn all() -> Vec<Path> {
        let mut all = Vec::new();
        for layout in [Layout::OneCore, Layout::TwoCores] {
            for family in [Family::V4, Family::V6] {
                for place in [Place::SameNode, Place::CrossNode] {
                    all.push(Path { place, family, layout });
                }
            }
        }
        all
    }

    /// One of the two on which everything is measured: IPv4, one core.
    pub fn is_main(self) -> bool {
        self.family == Family::V4 && self.layout == Layout::OneCore
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place == Place::SameNode { "same-node" } else { "cross-node" };
        let family = if self.family == Family::V4 { "v4" } else { "v6" };
        let layout = if self.layout == Layout::OneCore { "one-core" } else { "two-cores" };
        write!(f, "{place}-{family}-{layout}")
    }
}

impl FromStr for Path {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Path> {
        match Path::all().into_iter().find(|path| path.to_string() == text) {
            Some(path) => Ok(path),
            None => bail!("no path {text}: {{same,cross}}-node-{{v4,v6}}-{{one-core,two-cores}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_paths_have_eight_names_that_are_read_back() {
        let mut names: Vec<String> = Path::all().iter().map(Path::to_string).collect();
        for (path, name) in Path::all().iter().zip(&names) {
            assert_eq!(name.parse::<Path>().expect("its own name"), *path);
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 8);
        assert!("cross-node".parse::<Path>().is_err());
    }

    #[test]
    fn only_the_server_of_two_cores_is_on_the_second() {
        assert_eq!(Layout::TwoCores.core(Side::Server), 1);
        assert_eq!(Layout::TwoCores.core(Side::Client) + Layout::OneCore.core(Side::Server), 0);
    }
}
