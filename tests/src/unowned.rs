//! The watch over every lab's fabric sees what it should: without this, tests that pass under it would show nothing.

use anyhow::{Result, ensure};
use lab::Pod;
use lab::pod::ECHO;

use crate::support::{Clear, at, mesh};

#[test]
fn what_is_in_clear_and_was_not_announced_fails_a_test() -> Result<()> {
    let lab = mesh("watched")?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let far = lab.add_pod(Pod::new("shop", "far").node(2))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").node(2))?;
    for (number, to) in far.ips().into_iter().chain(stranger.ips()).enumerate() {
        let seen = cart.run_client(&["connect", &at(to, ECHO), "--send", "in clear?"])?;
        ensure!(seen["ok"] == 1, "{to}: {seen}");
        // By tunnel first: nothing of that is seen. Then each family in clear: a flow there and a flow back.
        let expected = number.saturating_sub(far.ips().len() - 1) * 2;
        let unowned = lab.unowned()?;
        ensure!(unowned.len() == expected, "{expected} flows in clear, seen: {unowned:#?}");
        ensure!(
            unowned.iter().all(|line| line.contains("shop/cart: TCP") && line.contains("in clear?")),
            "{unowned:#?}"
        );
    }
    lab.allow("a port that nobody used", Clear::of(&stranger).port(ECHO + 1));
    ensure!(!lab.unowned()?.is_empty(), "an allowance of another port allows this one");
    lab.allow("the stranger", Clear::of(&cart).with(&stranger).port(ECHO));
    ensure!(lab.unowned()?.is_empty(), "an allowance does not hold");
    lab.down()
}
