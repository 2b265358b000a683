//! `pod-watcher admin`: asks a running pod-watcher over its unix socket and prints for people or programs.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use mesh_daemon::admin::{Handler, Request, ask};
use mesh_daemon::table::{self, Column, column};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use crate::args::{AdminArgs, AdminVerb, Output};
use crate::node::{Input, Inputs};

/// The daemon's side: every question is the node's but the one about the chain, of which `chain` has what was seen last; `None` where
/// the chain is somebody else's care.
pub fn handler(inputs: Inputs, chain: Option<watch::Receiver<Value>>) -> Handler {
    Arc::new(move |request| {
        if request.verb == "chain" && request.args.is_empty() {
            let seen = chain.as_ref().map_or_else(somebody_elses, |seen| seen.borrow().clone());
            return Box::pin(std::future::ready(Ok(seen)));
        }
        let inputs = inputs.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            inputs.send(Input::Admin { request, reply }).await;
            answer.await.unwrap_or_else(|_| Err("pod-watcher is stopping".to_owned()))
        })
    })
}

fn somebody_elses() -> Value {
    let why = "pod-watcher was not told to put the plugin into a chain (--cni-conf-dir)";
    json!({ "directory": null, "in_chain": false, "file": null, "why": why, "left": [] })
}

/// The person's side.
pub async fn run(args: &AdminArgs) -> anyhow::Result<ExitCode> {
    let request = match &args.verb {
        AdminVerb::Pods => Request { verb: "pods".to_owned(), args: Vec::new() },
        AdminVerb::Chain => Request { verb: "chain".to_owned(), args: Vec::new() },
        AdminVerb::Rules { pod } => Request { verb: "rules".to_owned(), args: vec![pod.clone()] },
    };
    let answer = match ask("pod-watcher", &args.admin_socket, &request).await {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("pod-watcher: {error}");
            return Ok(ExitCode::from(error.exit_code()));
        }
    };
    let text = match (args.output, &args.verb) {
        (Output::Json, _) => format!("{}\n", serde_json::to_string_pretty(&answer)?),
        (Output::Table, AdminVerb::Pods) => pods(&answer),
        (Output::Table, AdminVerb::Rules { .. }) => rules(&answer),
        (Output::Table, AdminVerb::Chain) => chain(&answer),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

const PODS: [Column; 6] = [
    column("POD", "pod"),
    column("RULES", "rules"),
    column("SERVED", "served"),
    column("PHASE", "phase"),
    column("ADDRESSES", "addresses"),
    column("REASON", "reason"),
];
const RULES: [Column; 3] = [column("RULE", "rule"), column("PACKETS", "packets"), column("BYTES", "bytes")];

fn pods(answer: &Value) -> String {
    let rows = answer["pods"].as_array().map_or(&[][..], Vec::as_slice);
    let keepers = answer["keepers"].as_array().map_or(0, Vec::len);
    let node = answer["node"].as_str().unwrap_or("?");
    format!("{}\nnode {node}, {keepers} keeper(s) connected\n", table::render(&PODS, rows))
}

fn rules(answer: &Value) -> String {
    let counters = answer["counters"].as_object().into_iter().flatten();
    let rows: Vec<Value> =
        counters.map(|(rule, count)| json!({ "rule": rule, "packets": count[0], "bytes": count[1] })).collect();
    format!("{}\n{}", answer["rules"].as_str().unwrap_or_default(), table::render(&RULES, &rows))
}

fn chain(answer: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = match answer["in_chain"] == true {
        true => format!("in the CNI chain: {} of {}\n", text(&answer["file"]), text(&answer["directory"])),
        false => format!("not in the CNI chain of {}: {}\n", text(&answer["directory"]), text(&answer["why"])),
    };
    for left in answer["left"].as_array().into_iter().flatten() {
        lines.push_str(&format!("left alone: {}: {}\n", text(&left["file"]), text(&left["why"])));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_chain_is_shown_as_it_was_seen_last_and_said_to_be_somebody_elses_where_it_is() {
        let ask = |handler: &Handler| handler(Request { verb: "chain".to_owned(), args: Vec::new() });
        let (inputs, _queue) = Inputs::new();
        let (seen, known) =
            watch::channel(json!({"in_chain": false, "directory": "/d", "why": "no network is configured yet"}));
        let ours = handler(inputs.clone(), Some(known));
        let answer = ask(&ours).await.expect("an answer");
        assert_eq!(chain(&answer), "not in the CNI chain of /d: no network is configured yet\n");
        let left = json!([{"file": "00-x.conf", "why": "no JSON"}]);
        seen.send_replace(json!({"in_chain": true, "directory": "/d", "file": "10-net.conflist", "left": left}));
        let answer = ask(&ours).await.expect("an answer");
        assert_eq!(chain(&answer), "in the CNI chain: 10-net.conflist of /d\nleft alone: 00-x.conf: no JSON\n");
        let answer = ask(&handler(inputs, None)).await.expect("an answer");
        assert!(chain(&answer).contains("--cni-conf-dir"), "{answer}");
    }

    #[test]
    fn pods_and_rules_are_printed_in_columns() {
        let answer = json!({
            "node": "n1", "keepers": [{"keeper": 1}],
            "pods": [{"pod": "shop/cart", "rules": "redirect", "served": true, "phase": "Captured", "addresses": ["198.18.1.2", "fd77::2"], "reason": "Enrolled"}],
        });
        let text = pods(&answer);
        let words = |text: &str, line: usize| -> Vec<String> {
            text.lines().nth(line).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words(&text, 0), ["POD", "RULES", "SERVED", "PHASE", "ADDRESSES", "REASON"]);
        assert_eq!(words(&text, 1), ["shop/cart", "redirect", "yes", "Captured", "198.18.1.2", "fd77::2", "Enrolled"]);
        assert!(text.ends_with("\nnode n1, 1 keeper(s) connected\n"));
        let text = rules(&json!({ "rules": "table inet culvert {}\n", "counters": { "escape": [3, 180] } }));
        assert_eq!(words(&text, 3), ["escape", "3", "180"], "{text}");
    }
}
