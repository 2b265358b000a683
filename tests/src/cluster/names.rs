//! Names resolve as in any cluster: by the resolver that kubelet gives each pod, over both families, from pods of the mesh and others,
//! by a shell's tools and by a C library.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::wait;

use crate::shop::{captured, meshed, start};
use crate::support::{rolled_out, service, web};

/// How long a new Service may take until its name is known everywhere: answers, also that there is none, are kept for 5 s.
const KNOWN: Duration = Duration::from_secs(30);

#[test]
fn names_resolve_over_both_families_from_pods_of_the_mesh_and_from_others() -> Result<()> {
    let (cluster, _mesh) = meshed("names", true)?;
    let members = [start(&cluster, "shop", "cart", 1)?, start(&cluster, "outside", "other", 2)?];
    captured(&cluster, &[&members[0]], true)?;
    web(&cluster)?;
    rolled_out(&cluster)?;
    cluster.wait_for_names()?;
    let wanted: BTreeSet<IpAddr> = service(&cluster)?.into_iter().collect();
    ensure!(wanted.iter().any(IpAddr::is_ipv4) && wanted.iter().any(IpAddr::is_ipv6), "{wanted:?}");
    for member in &members {
        let run = |argv: &[&str]| {
            let exec = ["exec", "-n", &member.namespace, &member.name, "--"];
            cluster.kubectl(&[&exec[..], argv].concat())
        };
        let resolver = run(&["cat", "/etc/resolv.conf"])?;
        for server in ["198.18.128.10", "fd77:0:0:80::10"] {
            ensure!(resolver.contains(&format!("nameserver {server}\n")), "{resolver}");
            // Asked itself, whichever the other one would have said.
            let name = "web.default.svc.cluster.local";
            let found = wait::until("the Service's addresses", KNOWN, || {
                let answer = run(&["nslookup", name, server]).ok()?;
                (addresses(&answer)? == wanted).then_some(())
            });
            found.with_context(|| format!("{} of {}: {:?}", member.name, server, run(&["nslookup", name, server])))?;
        }
        // By the search list of the pod, in a client that asks its C library.
        for name in ["web.default:80", "web.default.svc.cluster.local:80"] {
            let report = run(&["culvert-lab", "client", "connect", name, "--expect", "0"])?;
            ensure!(report.contains("\"ok\":1"), "{name} from {}: {report}", member.name);
        }
        // A shell's tools; what they say of the answer is their business, but they come back with one.
        // (Not by wget's own -T: busybox 1.35 ends with a segmentation fault when a look-up fails while that is set, on any machine.)
        let page = run(&["timeout", "20", "wget", "-q", "-O", "-", "http://no-such-name.default.svc.cluster.local/"]);
        let refused = format!("{:#}", page.err().context("a name that is none was found")?);
        ensure!(refused.contains("bad address") || refused.contains("can't resolve"), "{refused}");
        // Nobody answers a ping at a Service's address; which one it is, is what is asked.
        let said = run(&["sh", "-c", "ping -c 1 -W 1 kube-dns.kube-system; true"])?;
        ensure!(said.contains("198.18.128.10") || said.contains("fd77:0:0:80::10"), "{said}");
    }
    cluster.down()
}

/// What `nslookup` says of the name: not the server that it asked.
fn addresses(answer: &str) -> Option<BTreeSet<IpAddr>> {
    let (_, answer) = answer.split_once("\n\n")?;
    let found = answer.lines().filter_map(|line| line.strip_prefix("Address")?.split_whitespace().last()?.parse().ok());
    Some(found.collect())
}
