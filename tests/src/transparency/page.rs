//! `docs/transparency.md`, from what was seen. No times: they differ from run to run, and what they must not differ by is asserted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::rows::{Expect, ROWS, Row, Why};
use super::{Compared, Way};

const HEAD: &str = "# What a pod notices of the mesh

One client and one server talk over plain pods and over each way of the mesh, IPv4 and IPv6, and what both saw is compared: bytes, how
it ended, errors, and when, within a second. This page is written by that test (`tests/src/transparency`, `BLESS=1`); each row is a run of
it, and the test fails when what it sees is not what stands here.

Ways: *same node* and *tunnel* between two pods of the mesh, *plaintext in* from a caller outside of it, *plaintext out* to a server
outside, *own address* and *own Service* of a pod that calls itself. `FIN` is an ordinary end, `ECONNRESET` a reset, *silence* nothing at
all for four to six seconds.

In short: bytes, ends and errors are those of plain pods. What stays different comes from one fact, that the application's peer is the
proxy of its node: connect succeeds before the backend is reached, the proxy's ports and marks meet the pod's own packet rules, and what is
said to the peer's kernel (urgent bytes, signatures, TCP_USER_TIMEOUT) is said to the proxy's.

## The same

";

const DIFFERENT: &str = "
## Not the same, and why

";

/// Where the rows end.
const MEANS_BEGINS: &str = "## What that means for you\n\n";

const MEANS: &str = "**Waiting for a port.** `nc -z HOST PORT`, and every loop that takes a successful connect for a server that is there, is satisfied by the
proxy of the node, also while nobody listens. Wait for an answer instead:

| instead of | wait with |
|---|---|
| `until nc -z web 80` | `until curl --fail --silent --output /dev/null http://web/health` |
| `until nc -z db 5432` | `until pg_isready --host db` |
| `until nc -z cache 6379` | `until redis-cli -h cache ping` |
| any server that speaks first | `until nc -w 2 HOST PORT < /dev/null \\| grep --quiet .` |

A server that says nothing before it is asked has to be asked. Or let Kubernetes wait: readiness probes are answered by the application
alone, and a Service leads to nobody who is not ready. Excluding the port at the caller (`docs/exclusions.md`) makes `nc -z` mean what it
did, and takes what that caller sends to the port out of the mesh.

**A backend that does not answer** is given up by the proxy after `nodeProxy.connectTimeoutSeconds` (default 10, `docs/dead-peers.md`), and
the application sees its open connection reset. Who wants to know sooner needs a deadline of its own for the first byte, not for connect.

**Rules of the pod's own** (iptables, nft). Chains that name the application's ports on the way in, or translate them, do not see what the
proxy delivers. NetworkPolicy and AuthorizationPolicy need nothing of this, and what a pod forwards for others (a bridge, a VPN, masqueraded
virtual machines) is not captured and keeps its rules. What such a container or machine says to the pod itself is captured: it is a caller in
clear, whom STRICT refuses.

| a rule that | needs |
|---|---|
| lets in by port (INPUT, policy DROP) | the mesh's ports as well: 15008, 15104 to 15119; 15006 for callers behind a bridge of the pod's own; `lo` |
| lets in what answers (`ct state established`) | `untracked` beside it |
| translates a port on the way in (PREROUTING) | no rule, where a Service's `targetPort` can do it; else the port excluded by both its numbers, for callers in clear, and callers in the mesh that call the second one |
| translates a destination on the way out (OUTPUT) | the port that is called excluded, or the application to call the second one itself |

**TCP MD5** (BGP) needs its port excluded at both ends.
";

/// A row and what was seen of it.
pub(super) struct Told {
    pub(super) row: &'static Row,
    pub(super) compared: Vec<Compared>,
}

/// The page. A row without a run is an error.
pub(super) fn write(told: &[Told]) -> Result<String> {
    let mut runs = Vec::new();
    for row in ROWS {
        let run = told.iter().find(|told| told.row.name == row.name).filter(|told| !told.compared.is_empty());
        ensure!(run.is_some(), "{}: no run, so nothing to write", row.name);
        runs.extend(run);
    }
    let mut page = HEAD.to_owned();
    page.push_str("| | ways | what both ends see |\n|---|---|---|\n");
    for Told { row, compared } in runs.iter().filter(|told| matches!(told.row.expect, Expect::Same)) {
        let ways: Vec<&str> = row.ways.iter().map(|way| way.name()).collect();
        let _ = writeln!(page, "{} {} | {} |", heading(row), ways.join(", "), plain(compared));
    }
    page.push_str(DIFFERENT);
    for why in Why::ALL {
        let of_this: Vec<&&Told> = runs.iter().filter(|told| told.row.expect == Expect::Differs(*why)).collect();
        ensure!(!of_this.is_empty(), "no row differs because {}", why.title());
        let _ =
            writeln!(page, "### {}\n\n{}\n\n| | pods | what both ends see |\n|---|---|---|", why.title(), why.text());
        for Told { row, compared } in of_this {
            let _ = writeln!(page, "{} plain | {} |", heading(row), plain(compared));
            for (story, ways) in in_the_mesh(compared) {
                let _ = writeln!(page, "| | {ways} | {story} |");
            }
        }
        page.push('\n');
    }
    page.push_str(MEANS_BEGINS);
    page.push_str(MEANS);
    Ok(page)
}

/// How a row begins on the page.
pub(super) fn heading(row: &Row) -> String {
    format!("| {} |", row.name)
}

/// How many rows a page has.
pub(super) fn headings(page: &str) -> usize {
    let rows = page.split(MEANS_BEGINS).next().unwrap_or_default();
    rows.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).count()
}

/// What plain pods see; once if it is the same for all.
fn plain(compared: &[Compared]) -> String {
    let mut stories: Vec<String> = compared.iter().map(|one| one.plain.said().join("; ")).collect();
    stories.sort();
    stories.dedup();
    stories.join(" / ")
}

/// (what is seen, on which ways)
fn in_the_mesh(compared: &[Compared]) -> Vec<(String, String)> {
    let mut stories: BTreeMap<String, BTreeMap<Way, Vec<bool>>> = BTreeMap::new();
    for one in compared {
        stories.entry(one.mesh.beside(&one.plain)).or_default().entry(one.way).or_default().push(one.v6);
    }
    let mut stories: Vec<_> = stories.into_iter().map(|(story, ways)| (ways, story)).collect();
    stories.sort();
    let name = |(way, families): (Way, Vec<bool>)| match families[..] {
        [v6] => format!("{} ({})", way.name(), if v6 { "IPv6" } else { "IPv4" }),
        _ => way.name().to_owned(),
    };
    stories
        .into_iter()
        .map(|(ways, story)| (story, ways.into_iter().map(name).collect::<Vec<_>>().join(", ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::play::Story;
    use super::*;

    fn runs() -> Vec<Told> {
        let seen = |way: &Way, v6| {
            let plain = Story::of(&[("client: connected", 2), ("client: read 5, then FIN", 2)]);
            let mesh = Story::of(&[("client: connected", 0), ("client: read 5, then FIN", 2)]);
            Compared { way: *way, v6, plain, mesh }
        };
        let compared = |row: &Row| row.ways.iter().flat_map(|way| [seen(way, false), seen(way, true)]).collect();
        ROWS.iter().map(|row| Told { row, compared: compared(row) }).collect()
    }

    #[test]
    fn a_row_without_a_run_is_no_page() {
        write(&runs()).expect("all rows have run");
        for left_out in 0..ROWS.len() {
            let (mut missing, mut empty) = (runs(), runs());
            missing.remove(left_out);
            empty[left_out].compared.clear();
            for told in [missing, empty] {
                let error = write(&told).expect_err("a row has not run").to_string();
                assert!(error.starts_with(ROWS[left_out].name), "{error}");
            }
        }
    }

    #[test]
    fn every_row_begins_one_line_of_the_page_whatever_order_they_ran_in() {
        let (page, mut told) = (write(&runs()).expect("a page"), runs());
        assert_eq!(headings(&page), ROWS.len());
        for row in ROWS {
            assert_eq!(page.lines().filter(|line| line.starts_with(&heading(row))).count(), 1, "{}", row.name);
        }
        told.reverse();
        assert_eq!(write(&told).expect("the same page"), page);
    }

    #[test]
    fn the_same_at_another_time_is_told_as_such_and_without_figures() {
        let early = Story::of(&[("a", 0), ("b", 2)]);
        let late = Story::of(&[("a", 2), ("b", 2)]);
        assert_eq!(early.beside(&late), "a, sooner; b");
        assert_eq!(late.beside(&early), "a, later; b");
        assert_eq!(early.beside(&Story::of(&[("a", 2)])), "a; b");
    }
}
