//! The story without a mesh: what the nodes do by themselves, and what they lack.

use anyhow::ensure;
use lab::pod::{BULK, WHOAMI};

use super::teller::Teller;
use super::{Cast, at, family};

const MARKER: &str = "culvert-lab-plaintext-marker";

pub(super) fn tell(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, far, .. } = cast;
    teller.step("direct traffic between nodes", |teller| {
        let capture = lab.capture(&[MARKER.as_bytes()])?;
        let mut detail = Vec::new();
        for ip in far.ips() {
            let bulk = cart.run_client(&["bulk", &at(ip, BULK), "--marker", MARKER])?;
            ensure!(bulk["ok"] == 1, "bulk to {ip}: {bulk}");
            let who = cart.run_client(&["connect", &at(ip, WHOAMI), "--expect", "0"])?;
            let seconds = bulk["seconds"].as_f64().unwrap_or_default();
            teller.figure(&format!("direct_20MB_{}_s", family(ip)), seconds);
            let peer = who["text"].as_str().unwrap_or_default().split(' ').next().unwrap_or_default().to_owned();
            detail.push(format!("{}: 10 MB each way, checksums right, {seconds:.2} s; seen as {peer}", family(ip)));
        }
        let markers: u64 = capture.flows()?.values().map(|f| f.markers).sum();
        ensure!(markers as usize == far.ips().len(), "the marker was seen {markers} times on the fabric");
        detail.push("the fabric saw the plaintext marker: nothing is encrypted".into());
        Ok(((), detail.join("\n")))
    });
    teller.step("without a mesh a service's virtual address leads nowhere", |_| {
        let vip = cart.run_client(&["connect", "web:80", "--timeout", "1000"])?;
        ensure!(vip["ok"] == 0, "web:80 answered: {vip}");
        let pods = cart.exec(&["curl", "-s", "-m", "5", "http://web-pods.shop.svc.cluster.local:8080/"])?.ok()?;
        ensure!(pods.contains("hello from web-"), "headless: {pods}");
        Ok(((), format!("web:80: {}; the headless name leads to its pods", vip["outcomes"])))
    });
}
