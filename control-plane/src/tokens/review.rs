//! Projected tokens of node-proxy's pods, reviewed by the API server (TokenReview). A token must be for our audience, of the proxies'
//! service account, and bound to a pod: the node is the one in the token's own claims, which the API server signed.
//!
//! Answers are kept for a short time: a node whose pods all start at once shows one token for each certificate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_kube::{Api, Method};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Stranger;

/// A good answer is believed for so long: a token that is revoked meanwhile is believed this much longer.
const GOOD: Duration = Duration::from_secs(60);
/// A bad one: long enough that a stranger in a loop costs little.
const BAD: Duration = Duration::from_secs(10);
/// Answers that are kept; more than nodes have tokens. Full: the oldest half goes.
const KEPT: usize = 4096;
/// Reviews at a time.
const AT_A_TIME: usize = 16;
/// How long a caller waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// How often callers of open streams are looked at again: their tokens end (the shortest after 10 minutes).
pub const AGAIN: Duration = Duration::from_secs(300);
const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Claims of a token that is bound to a pod, as the API server names them in a review (Kubernetes 1.32: always there).
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";

/// Whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// For whom they are.
    pub audience: String,
    /// The proxies' service account, `namespace/name`.
    pub account: (String, String),
}

type Answer = Result<String, Stranger>;

/// Asks, and remembers.
pub struct Reviewer {
    api: Api,
    expected: Expected,
    answers: Mutex<HashMap<Arc<str>, (Answer, Instant)>>,
    turns: Semaphore,
}

impl Reviewer {
    /// Knows nobody yet.
    pub fn new(api: Api, expected: Expected) -> Self {
        Self { api, expected, answers: Mutex::default(), turns: Semaphore::new(AT_A_TIME) }
    }

    /// The node of the proxy whose token this is.
    pub async fn node(&self, token: &Arc<str>) -> Answer {
        if let Some(answer) = self.known(token) {
            return answer;
        }
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Stranger::TooMany) };
        // Somebody with the same token may have been before us.
        if let Some(answer) = self.known(token) {
            return answer;
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": &**token, "audiences": [self.expected.audience]},
        });
        let reviewed = self.api.write(Method::Post, PATH, &review).await;
        // Not kept: the next caller may have more luck.
        let reviewed = reviewed.map_err(|error| Stranger::Unavailable(error.to_string()))?;
        let answer = judge(reviewed.get("status").unwrap_or(&Value::Null), &self.expected);
        self.keep(token.clone(), answer.clone());
        answer
    }

    fn known(&self, token: &Arc<str>) -> Option<Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(token).filter(|(_, until)| Instant::now() < *until).map(|(answer, _)| answer.clone())
    }

    fn keep(&self, token: Arc<str>, answer: Answer) {
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= KEPT {
            answers.retain(|_, (_, until)| now < *until);
        }
        if answers.len() >= KEPT {
            let mut ends: Vec<Instant> = answers.values().map(|(_, until)| *until).collect();
            ends.sort_unstable();
            let middle = ends[ends.len() / 2];
            answers.retain(|_, (_, until)| *until > middle);
        }
        let until = now + if answer.is_ok() { GOOD } else { BAD };
        answers.insert(token, (answer, until));
    }
}

/// What a review's `status` says: everything that is not there speaks against the caller.
fn judge(status: &Value, expected: &Expected) -> Answer {
    let text = |name: &str| status.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let short = |text: &str| text.chars().take(200).collect::<String>();
    if status.get("authenticated") != Some(&Value::Bool(true)) {
        return Err(Stranger::NotTaken(short(text("/error"))));
    }
    // An authenticator that knows no audiences answers without them, and then has not looked at ours.
    let audiences = status.get("audiences").and_then(Value::as_array);
    if !audiences.into_iter().flatten().any(|audience| audience.as_str() == Some(&expected.audience)) {
        return Err(Stranger::NotTaken(format!("it is not for the audience {}", expected.audience)));
    }
    let (namespace, name) = &expected.account;
    if text("/user/username") != format!("system:serviceaccount:{namespace}:{name}") {
        return Err(Stranger::OtherAccount(short(text("/user/username"))));
    }
    let claim = |name: &str| {
        let values = status.pointer("/user/extra").and_then(|extra| extra.get(name)).and_then(Value::as_array)?;
        match values.as_slice() {
            [Value::String(one)] if !one.is_empty() => Some(one.clone()),
            _ => None,
        }
    };
    claim(POD).and_then(|_| claim(NODE)).ok_or(Stranger::Unbound)
}

#[cfg(test)]
mod tests {
    use mesh_kube::fake::Fake;

    use super::*;

    fn expected() -> Expected {
        Expected { audience: "mesh-ca".to_owned(), account: ("culvert-system".to_owned(), "node-proxy".to_owned()) }
    }

    fn good() -> Value {
        json!({
            "authenticated": true, "audiences": ["mesh-ca"],
            "user": {
                "username": "system:serviceaccount:culvert-system:node-proxy",
                "extra": {NODE: ["node-1"], POD: ["node-proxy-abcde"]},
            },
        })
    }

    #[test]
    fn a_proxy_s_token_says_its_node_and_whatever_is_missing_speaks_against_it() {
        assert_eq!(judge(&good(), &expected()), Ok("node-1".to_owned()));
        let with = |change: fn(&mut Value)| {
            let mut status = good();
            change(&mut status);
            judge(&status, &expected()).expect_err("refused")
        };
        let account = |name: &str| Stranger::OtherAccount(name.to_owned());
        assert!(matches!(judge(&Value::Null, &expected()), Err(Stranger::NotTaken(_))));
        assert_eq!(with(|s| s["authenticated"] = json!(false)), Stranger::NotTaken(String::new()));
        assert!(matches!(with(|s| s["authenticated"] = json!("true")), Stranger::NotTaken(_)));
        assert!(matches!(with(|s| s["audiences"] = json!(["https://kubernetes.default.svc"])), Stranger::NotTaken(_)));
        assert!(matches!(with(|s| s["audiences"] = Value::Null), Stranger::NotTaken(_)));
        let app = "system:serviceaccount:shop:cart";
        assert_eq!(with(|s| s["user"]["username"] = json!("system:serviceaccount:shop:cart")), account(app));
        assert_eq!(with(|s| s["user"]["username"] = json!("node-proxy")), account("node-proxy"));
        for unbound in [json!(null), json!([]), json!([""]), json!(["node-1", "node-2"]), json!("node-1")] {
            let mut status = good();
            status["user"]["extra"][NODE] = unbound.clone();
            assert_eq!(judge(&status, &expected()), Err(Stranger::Unbound), "{unbound}");
        }
        assert_eq!(with(|s| drop(s["user"]["extra"].as_object_mut().map(|e| e.remove(POD)))), Stranger::Unbound);
    }

    #[tokio::test]
    async fn one_token_is_reviewed_once_however_often_it_is_shown_and_an_outage_is_no_refusal() {
        let fake = Fake::start("127.0.0.1").await;
        fake.token("abc", good());
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, fake.kubeconfig()).expect("written");
        let reviewer = Reviewer::new(Api::connect(Some(&path)).await.expect("a client"), expected());
        fake.refuse("tokenreviews", 503, 1);
        assert!(matches!(reviewer.node(&"abc".into()).await, Err(Stranger::Unavailable(_))));
        for _ in 0..100 {
            assert_eq!(reviewer.node(&"abc".into()).await, Ok("node-1".to_owned()));
            assert!(matches!(reviewer.node(&"forged".into()).await, Err(Stranger::NotTaken(_))));
        }
        let asked = fake.posted(PATH);
        assert_eq!(asked.len(), 2);
        assert!(asked.iter().all(|review| review["spec"]["audiences"] == json!(["mesh-ca"])));
    }

    #[tokio::test]
    async fn strangers_cannot_make_it_remember_without_end() {
        let fake = Fake::start("127.0.0.1").await;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, fake.kubeconfig()).expect("written");
        let reviewer = Reviewer::new(Api::connect(Some(&path)).await.expect("a client"), expected());
        for n in 0..3 * KEPT {
            reviewer.keep(n.to_string().into(), Err(Stranger::Unbound));
        }
        assert!(reviewer.answers.lock().expect("not poisoned").len() <= KEPT);
    }
}
