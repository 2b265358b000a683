//! A policy counts for connections that are open already: soon after its file is in place a connection that it refuses has ended at the
//! client, and no other has noticed.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle};
use serde_json::Value;

use crate::support::{self, CHANGE, figure};
use crate::talk::{self, Met, at, field};

const TRIES: usize = 20;
/// From the rename to the end at the client.
const PROMISED: Duration = Duration::from_secs(1);

/// Refuses guest. With a name of its own each time, so that a line of the log belongs to one try.
fn not_guest(number: usize) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: not-guest-{number}}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  action: DENY\n  \
         rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/guest]}}}}]}}]\n"
    )
}

#[test]
fn a_newly_denied_live_connection_ends_within_a_second_of_the_file_and_no_other_does() -> Result<()> {
    let lab = support::mesh("live-policy")?;
    let client = |name: &str| lab.add_pod(Pod::new("shop", name).service_account(name).app(App::None));
    let (cart, guest) = (client("cart")?, client("guest")?);
    let server = |name: &str, app: &str, node| {
        lab.add_pod(Pod::new("shop", name).label("app", app).service_account(app).node(node))
    };
    let (near, far, beside) = (server("near", "web", 1)?, server("far", "web", 2)?, server("beside", "beside", 2)?);
    talk::everyone_known(&lab, &[&cart, &guest, &near, &far, &beside])?;
    // cart's own to the same pods, and guest's to a pod that the policy does not select, live through all tries.
    let mut others = open(&cart, &[&near, &far])?;
    others.extend(open(&guest, &[&beside])?);
    let (mut slowest, mut all) = (Duration::ZERO, Duration::ZERO);
    for number in 0..TRIES {
        // Four: on the short way and through a tunnel, over each family.
        let denied = open(&guest, &[&near, &far])?;
        let text = not_guest(number);
        let start = Instant::now();
        lab.apply("not-guest", &text)?;
        for mut stream in &denied {
            stream.set_read_timeout(Some(CHANGE))?;
            let end = stream.read(&mut [0]).map_err(|error| error.kind());
            ensure!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "try {number}: the client met {end:?}");
        }
        let took = start.elapsed();
        (slowest, all) = (slowest.max(took), all + took);
        others.iter().try_for_each(talk::say)?;
        logged(&lab, number, denied.len())?;
        lab.delete("not-guest")?;
        for to in [&near, &far].into_iter().flat_map(|pod| at(pod, ECHO)) {
            talk::until(&guest, to, Met::Answered)?;
        }
    }
    others.iter().try_for_each(talk::say)?;
    figure(
        "policy_to_end_max",
        slowest.as_millis(),
        "ms",
        &format!("{TRIES} tries of 4 connections, from before the file was written"),
    );
    figure("policy_to_end_mean", (all / TRIES as u32).as_millis(), "ms", "the last of 4 connections");
    ensure!(slowest <= PROMISED, "the slowest end came after {slowest:?}");
    Ok(())
}

/// A connection of each family to each pod, used once.
fn open(from: &PodHandle, to: &[&PodHandle]) -> Result<Vec<TcpStream>> {
    let targets = to.iter().flat_map(|pod| at(pod, ECHO));
    let streams: Vec<TcpStream> = targets.map(|to| Ok(talk::connect(from, to)??)).collect::<Result<_>>()?;
    streams.iter().try_for_each(talk::say)?;
    Ok(streams)
}

/// Each ended connection stands in the log of the end that judged, with its reason and the policy.
fn logged(lab: &Lab, number: usize, count: usize) -> Result<()> {
    let key = format!("shop/not-guest-{number}");
    let ended = |line: &&Value| {
        line["reason"] == "PolicyChanged"
            && line["policy"] == key.as_str()
            && talk::is_inbound(line)
            && field(line, "source_identity").ends_with("/sa/guest")
    };
    lab::wait::until_true(&format!("{count} lines naming {key}"), CHANGE, || {
        talk::lines(lab).iter().filter(ended).count() == count
    })
}
