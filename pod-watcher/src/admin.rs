//! `pod-watcher admin`: asks a running pod-watcher over its unix socket and prints for people or programs.

use std::io::Write;
use std::sync::Arc;

use mesh_daemon::admin::{Handler, Request, ask};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::args::{AdminArgs, AdminVerb, Output};
use crate::node::{Input, Inputs};

/// The daemon's side: every question is the node's.
pub fn handler(inputs: Inputs) -> Handler {
    Arc::new(move |request| {
        let inputs = inputs.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            inputs.send(Input::Admin { request, reply }).await;
            answer.await.unwrap_or_else(|_| Err("pod-watcher is stopping".to_owned()))
        })
    })
}

/// The person's side.
pub async fn run(args: &AdminArgs) -> anyhow::Result<()> {
    let request = match &args.verb {
        AdminVerb::Pods => Request { verb: "pods".to_owned(), args: Vec::new() },
        AdminVerb::Rules { pod } => Request { verb: "rules".to_owned(), args: vec![pod.clone()] },
    };
    let answer = ask(&args.admin_socket, &request).await?;
    let text = match (args.output, &args.verb) {
        (Output::Json, _) => format!("{}\n", serde_json::to_string_pretty(&answer)?),
        (Output::Table, AdminVerb::Pods) => pods(&answer),
        (Output::Table, AdminVerb::Rules { .. }) => rules(&answer),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn pods(answer: &Value) -> String {
    let mut rows = vec![["POD", "RULES", "SERVED", "PHASE", "ADDRESSES", "REASON"].map(str::to_owned)];
    for pod in answer["pods"].as_array().into_iter().flatten() {
        let text = |key: &str| pod[key].as_str().unwrap_or_default().to_owned();
        let addresses: Vec<&str> =
            pod["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let served = if pod["served"] == true { "yes" } else { "no" };
        rows.push([text("pod"), text("rules"), served.to_owned(), text("phase"), addresses.join(" "), text("reason")]);
    }
    let keepers = answer["keepers"].as_array().map_or(0, Vec::len);
    format!("{}\nnode {}, {keepers} keeper(s) connected\n", columns(&rows), answer["node"].as_str().unwrap_or("?"))
}

fn rules(answer: &Value) -> String {
    let mut rows = vec![["RULE", "PACKETS", "BYTES"].map(str::to_owned)];
    for (name, count) in answer["counters"].as_object().into_iter().flatten() {
        rows.push([name.clone(), count[0].to_string(), count[1].to_string()]);
    }
    format!("{}\n{}", answer["rules"].as_str().unwrap_or_default(), columns(&rows))
}

/// Left-aligned, two spaces between.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_printed_in_columns() {
        let answer = serde_json::json!({
            "node": "n1", "keepers": [{"keeper": 1}],
            "pods": [{"pod": "shop/cart", "rules": "redirect", "served": true, "phase": "Captured", "addresses": ["198.18.1.2", "fd77::2"], "reason": "Enrolled"}],
        });
        let want = "POD        RULES     SERVED  PHASE     ADDRESSES           REASON\n\
                    shop/cart  redirect  yes     Captured  198.18.1.2 fd77::2  Enrolled\n\nnode n1, 1 keeper(s) connected\n";
        assert_eq!(pods(&answer), want);
    }
}
