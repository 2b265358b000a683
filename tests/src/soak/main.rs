//! `cargo xtask soak`: a mesh that is kept busy and changed all the time, and must be at the end what it was at the start. Pods, policies,
//! certificates and connections come and go; some peers half-close and stay, some never read. Asserted: no payload byte of a pod of
//! the mesh crosses the fabric outside of a tunnel, no daemon grows, and descriptors, metric series and rules end where they began.

#[allow(dead_code)]
#[path = "../figure.rs"]
mod figure;
mod growth;
mod rest;
#[allow(dead_code)]
#[path = "../scrape.rs"]
mod scrape;
#[allow(dead_code, unused_imports)]
#[path = "../support.rs"]
mod support;
mod traffic;
#[allow(dead_code)]
#[path = "../watched.rs"]
mod watched;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, Config, MeshConfig, Pod, PodHandle};

use growth::Growth;
use rest::{PASSING, Rest};
use support::{Clear, Watched, at};
use traffic::{Halves, Held};

/// Rounds for which a pod, an idler or a stalled reader stays.
const STAY: usize = 3;
/// Accounts in turn: certificates are fetched for each, and dropped with its last pod.
const ACCOUNTS: usize = 7;

/// The pods that stay.
struct Cast {
    cart: PodHandle,
    web: PodHandle,
    far: PodHandle,
    stranger: PodHandle,
}

impl Cast {
    fn open(lab: &Watched) -> Result<Cast> {
        let pod =
            |namespace: &str, name: &str, node| lab.add_pod(Pod::new(namespace, name).service_account(name).node(node));
        let cast = Cast {
            cart: pod("shop", "cart", 1)?,
            web: pod("shop", "web", 1)?,
            far: pod("shop", "far", 2)?,
            stranger: pod("outside", "stranger", 2)?,
        };
        lab.allow("a pod outside of the mesh", Clear::of(&cast.stranger));
        Ok(cast)
    }
}

/// What one round leaves behind for a while.
#[derive(Default)]
struct Left {
    pods: VecDeque<PodHandle>,
    held: VecDeque<Held>,
    halves: VecDeque<Halves>,
}

/// One round of everything; how many connections were served.
fn round(lab: &Watched, cast: &Cast, left: &mut Left, number: usize) -> Result<u64> {
    let account = format!("account-{}", number % ACCOUNTS);
    let churn = Pod::new("shop", &format!("{PASSING}{number}")).service_account(&account).node(1 + number % 2);
    let churn = lab.add_pod(churn.app(App::serve(&[("echo", ECHO)])))?;
    // A policy that names the new pod and refuses somebody; its successor takes its place.
    lab.apply(
        "soak",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: soak-{}}}\n\
             spec: {{action: DENY, selector: {{matchLabels: {{app: {PASSING}{number}}}}}, rules: [{{from: [{{source: \
             {{namespaces: [nobody-{number}]}}}}]}}]}}\n",
            number % 2
        ),
    )?;
    let mut served = 0;
    for (from, to) in [
        (&cast.cart, &cast.web),
        (&cast.cart, &cast.far),
        (&cast.far, &cast.cart),
        (&cast.stranger, &cast.web),
        (&cast.web, &cast.stranger),
        (&churn, &cast.far),
        (&cast.far, &churn),
    ] {
        for ip in to.ips() {
            let report = from.run_client(&["connect", &at(ip, ECHO), "--send", "soak", "--count", "20"])?;
            let ok = report["ok"].as_u64().unwrap_or(0);
            ensure!(ok == 20, "{} to {} ({ip}): {report}", from.key(), to.key());
            served += ok;
        }
    }
    for to in [&cast.web, &cast.far, &churn, &cast.stranger] {
        left.held.push_back(Held::open(&cast.cart, to)?);
    }
    left.pods.push_back(churn);
    while left.pods.len() > STAY {
        lab.remove_pod(&left.pods.pop_front().context("counted")?)?;
    }
    while left.held.len() > STAY * 4 {
        left.halves.push_back(left.held.pop_front().context("counted")?.leave());
    }
    while left.halves.len() > STAY * 4 {
        left.halves.pop_front();
    }
    let unowned = lab.unowned()?;
    ensure!(unowned.is_empty(), "in clear on the fabric: {unowned:#?}");
    Ok(served)
}

fn clear(lab: &Watched, left: &mut Left) -> Result<()> {
    left.held.clear();
    left.halves.clear();
    while let Some(pod) = left.pods.pop_front() {
        lab.remove_pod(&pod)?;
    }
    lab.delete("soak")
}

fn minutes() -> Result<f64> {
    let given = std::env::var("CULVERT_SOAK_MINUTES").unwrap_or_else(|_| "2".to_owned());
    let minutes: f64 = given.parse().context("CULVERT_SOAK_MINUTES")?;
    ensure!((0.5..=1440.0).contains(&minutes), "{minutes} minutes: half a minute to a day");
    Ok(minutes)
}

#[test]
#[allow(clippy::print_stdout)] // Progress and table are for a person.
fn a_mesh_under_constant_change_is_at_the_end_what_it_was_at_the_start() -> Result<()> {
    let minutes = minutes()?;
    let config = MeshConfig {
        // Series of pods that have gone leave soon, so that the end can be compared with the start.
        worker_args: vec!["--series-idle-seconds".to_owned(), "5".to_owned()],
        ..MeshConfig::default()
    };
    // A short one may run beside a long one.
    let name = format!("soak-{:.0}s", minutes * 60.0);
    let lab = support::lab(Config::default().name(&name).mesh(config))?;
    lab::interrupt::take_down_on_signal(lab.dir())?;
    let cast = Cast::open(&lab)?;
    let mut left = Left::default();
    // Everything once, so that what is made at first use is there: the second time is compared.
    for number in 0..2 * STAY {
        round(&lab, &cast, &mut left, number)?;
    }
    clear(&lab, &mut left)?;
    let start = Rest::settled(&lab)?;
    println!("soak: {minutes} minutes; at the start:\n{start}");

    let (begun, mut number, mut served) = (Instant::now(), 2 * STAY, 0);
    let mut growth = Growth::of(&lab)?;
    let mut told = Instant::now();
    while begun.elapsed() < Duration::from_secs_f64(minutes * 60.0) {
        served += round(&lab, &cast, &mut left, number).with_context(|| format!("round {number}"))?;
        number += 1;
        growth.sample(begun.elapsed())?;
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!(
                "soak: {:>5.0} s, round {number}, {served} connections; {}",
                begun.elapsed().as_secs_f64(),
                growth.now()
            );
        }
    }
    clear(&lab, &mut left)?;
    println!("{}", growth.table());
    figure::figure("soak_connections", served, "connections", &format!("{number} rounds in {minutes} minutes"));
    // With less time than this there is no slope to speak of: printed, not asserted.
    if minutes >= 10.0 {
        growth.judge()?;
    }
    start.again(&lab)?;
    println!("soak: descriptors, series and rules are those of the start");
    lab.down()
}
