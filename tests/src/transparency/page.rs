//! `docs/transparency.md`, from what was seen. No times: they differ from run to run, and what they must not differ by is asserted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rows::{Expect, NOT_YET, Row};
use super::{Compared, Way};

const HEAD: &str = "# What a pod notices of the mesh

One client and one server talk over plain pods and over each way of the mesh, IPv4 and IPv6, and what both saw is compared: bytes, how
it ended, errors, and when, within a second. This page is written by that test (`tests/src/transparency`, `BLESS=1`); a row is a run.

Ways: *same node* and *tunnel* between two pods of the mesh, *plaintext in* from a caller outside of it, *plaintext out* to a server outside.

## The same

";

const DIFFERENT: &str = "
## Not the same

";

const MEANS: &str = "
## What that means for you

**Waiting for a port.** `nc -z HOST PORT` and every loop that takes a successful connect for a server that is there is satisfied by the proxy of
the pod it runs in. Wait for an answer instead: `curl --fail --retry-connrefused`, `pg_isready`, `redis-cli ping`, `nc -w 1` with something to
say and something to read; or let Kubernetes wait (readiness probes: those are answered by the application alone).

**A backend that does not answer** is given up by the proxy after its own time, and the application sees its open connection reset.
An application that wants to know sooner sets a deadline of its own for the first byte.

**Ports that must not be touched** (TCP MD5, as BGP speakers use it; a pod's own NAT or packet filter by device) are left out by annotation:
`docs/exclusions.md`.
";

/// The page.
pub(super) fn write(told: &[(&Row, Vec<Compared>)]) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("| | ways | what both ends see |\n|---|---|---|\n");
    let told = || told.iter().filter(|(row, _)| !NOT_YET.contains(&row.name));
    for (row, compared) in told().filter(|(row, _)| matches!(row.expect, Expect::Same)) {
        let ways: Vec<&str> = row.ways.iter().map(|way| way.name()).collect();
        let _ = writeln!(page, "| {} | {} | {} |", row.name, ways.join(", "), plain(compared));
    }
    page.push_str(DIFFERENT);
    for (row, compared) in told() {
        let Expect::Differs(reason) = row.expect else { continue };
        let _ = writeln!(page, "**{}.** {reason}.\n", capital(row.name));
        let _ = writeln!(page, "| | what both ends see |\n|---|---|\n| plain pods | {} |", plain(compared));
        let mut stories: BTreeMap<String, Vec<Way>> = BTreeMap::new();
        for one in compared {
            let ways = stories.entry(one.mesh.said().join("; ")).or_default();
            if !ways.contains(&one.way) {
                ways.push(one.way);
            }
        }
        let mut stories: Vec<(Vec<Way>, String)> = stories.into_iter().map(|(story, ways)| (ways, story)).collect();
        stories.sort();
        for (ways, story) in stories {
            let ways: Vec<&str> = ways.into_iter().map(Way::name).collect();
            let _ = writeln!(page, "| {} | {story} |", ways.join(", "));
        }
        page.push('\n');
    }
    page.push_str(MEANS.trim_start());
    page
}

/// What plain pods see; once if it is the same for all.
fn plain(compared: &[Compared]) -> String {
    let mut stories: Vec<String> = compared.iter().map(|one| one.plain.said().join("; ")).collect();
    stories.sort();
    stories.dedup();
    stories.join(" / ")
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
