//! The certificate authority in a Secret, made by whichever control plane comes first and read by all, and its root in a ConfigMap, which
//! every node's proxy mounts to know the control plane by.
//!
//! The key is written to the API server once, and from then on only read: a control plane that cannot read it waits, it never makes
//! another, since every certificate of the mesh hangs on it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use mesh_daemon::drain;
use mesh_kube::{Api, Backoff, Error, Method};
use mesh_tls::authority::Authority;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// The Secret with the authority.
const SECRET: &str = "culvert-ca";
/// The ConfigMap with the root alone: public.
const CONFIG_MAP: &str = "culvert-ca-root-cert";
/// Keys of the Secret; the second is the ConfigMap's too. The names of the files that `--ca-dir` holds.
const KEY: &str = "root-key.pem";
/// See [`KEY`].
const CERT: &str = "root-cert.pem";
/// How long the API server may be away at our start until we give up, which kubelet makes a new start of.
const START: Duration = Duration::from_secs(60);
/// How often the ConfigMap is looked at: somebody may have changed it, and proxies that start afterwards would not know us.
const LOOK: Duration = Duration::from_secs(30);

/// The authority of the Secret, which is made if there is none.
pub async fn authority(api: &Api, namespace: &str) -> anyhow::Result<Authority> {
    let begun = tokio::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let object = format!("Secret {namespace}/{SECRET}");
    loop {
        let error = match once(api, namespace).await {
            Ok(Some(secret)) => return of_secret(&secret).with_context(|| object),
            // By us or by somebody faster: read as everybody reads it, in a moment, since a server may lag behind what it has written.
            Ok(None) => anyhow::anyhow!("it was made and is not there yet"),
            Err(error) => error,
        };
        if begun.elapsed() >= START {
            return Err(error).with_context(|| format!("{object}: the certificate authority cannot be read or made"));
        }
        tracing::warn!(%error, "{object} cannot be read or made; trying again");
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// Reads the Secret; makes it if there is none.
async fn once(api: &Api, namespace: &str) -> anyhow::Result<Option<Value>> {
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    if let Some(secret) = api.get(&format!("{secrets}/{SECRET}")).await? {
        return Ok(Some(secret));
    }
    let (authority, key) = Authority::create_to_keep().context("make a root")?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": SECRET, "namespace": namespace, "labels": labels()},
        "stringData": {KEY: key.as_str(), CERT: authority.root_pem()},
    });
    match api.write(Method::Post, &secrets, &secret).await {
        Ok(_) => tracing::info!("a new certificate authority was made: Secret {namespace}/{SECRET}"),
        Err(error) if error.code() == Some(409) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(None)
}

fn labels() -> Value {
    json!({"app.kubernetes.io/part-of": "culvert", "app.kubernetes.io/component": "control-plane"})
}

fn of_secret(secret: &Value) -> anyhow::Result<Authority> {
    let text = |key: &str| -> anyhow::Result<Zeroizing<String>> {
        let Some(data) = secret.pointer("/data").and_then(|data| data.get(key)) else {
            bail!(
                "it has no {key}: put it back, or delete the Secret to have a new authority made (every certificate ends with it)"
            )
        };
        let ByteString(bytes) = serde_json::from_value(data.clone()).with_context(|| format!("{key} is not base64"))?;
        Ok(Zeroizing::new(String::from_utf8(bytes).ok().with_context(|| format!("{key} is not text"))?))
    };
    Ok(Authority::from_pem(&text(KEY)?, &text(CERT)?)?)
}

/// Keeps the ConfigMap what it must be.
pub struct Publisher {
    api: Api,
    namespace: String,
    root: String,
}

impl Publisher {
    /// Of this root, in this namespace.
    pub fn new(api: Api, namespace: &str, root: &str) -> Self {
        Self { api, namespace: namespace.to_owned(), root: root.to_owned() }
    }

    /// Until the drain is asked for.
    pub async fn run(self, drain: drain::Watch) {
        let mut backoff = Backoff::new(Duration::from_millis(500), LOOK);
        loop {
            let wait = match self.once().await {
                Ok(changed) => {
                    backoff.worked();
                    if changed {
                        tracing::info!("root certificate published: ConfigMap {}/{CONFIG_MAP}", self.namespace);
                    }
                    LOOK
                }
                Err(error) => {
                    tracing::warn!(%error, "ConfigMap {}/{CONFIG_MAP} cannot be written; trying again", self.namespace);
                    backoff.failed()
                }
            };
            tokio::select! {
                biased;
                () = drain.asked() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Whether anything had to be written.
    async fn once(&self) -> Result<bool, Error> {
        let maps = format!("/api/v1/namespaces/{}/configmaps", self.namespace);
        let path = format!("{maps}/{CONFIG_MAP}");
        let Some(mut map) = self.api.get(&path).await? else {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": CONFIG_MAP, "namespace": self.namespace, "labels": labels()},
                "data": {CERT: self.root},
            });
            return self.api.write(Method::Post, &maps, &map).await.map(|_| true);
        };
        if map.pointer("/data").and_then(|data| data.get(CERT)).and_then(Value::as_str) == Some(&self.root) {
            return Ok(false);
        }
        map["data"] = json!({CERT: self.root});
        // With the version that was read: whoever is slower is refused, and looks again.
        self.api.write(Method::Put, &path, &map).await.map(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use mesh_kube::fake::Fake;

    use super::*;

    const SECRETS: &str = "/api/v1/secrets";

    async fn api(fake: &Fake) -> Api {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, fake.kubeconfig()).expect("written");
        Api::connect(Some(&path)).await.expect("a client")
    }

    /// As the API server keeps it: `stringData` is turned into `data`.
    fn stored(fake: &Fake) -> Value {
        let mut secret = fake.posted(SECRETS).pop().expect("a Secret was written");
        let text = |key: &str| secret["stringData"][key].as_str().expect("text").as_bytes().to_vec();
        let data = json!({KEY: ByteString(text(KEY)), CERT: ByteString(text(CERT))});
        secret["data"] = data;
        secret
    }

    #[tokio::test]
    async fn the_first_makes_the_authority_and_all_others_read_that_one() {
        let fake = Fake::start("127.0.0.1").await;
        let api = api(&fake).await;
        assert!(once(&api, "culvert-system").await.expect("written").is_none(), "made, to be read again");
        let secret = stored(&fake);
        assert_eq!(secret["metadata"]["namespace"], "culvert-system");
        let (one, two) = (of_secret(&secret).expect("an authority"), of_secret(&secret).expect("an authority"));
        assert_eq!(one.root_pem(), two.root_pem());
        // What is there is never written over.
        assert!(once(&api, "culvert-system").await.expect("read").is_some());
        assert_eq!(fake.posted(SECRETS).len(), 1);
    }

    #[tokio::test]
    async fn a_secret_that_is_half_or_broken_is_named_and_left_alone() {
        let fake = Fake::start("127.0.0.1").await;
        let whole = {
            let api = api(&fake).await;
            once(&api, "culvert-system").await.expect("written");
            stored(&fake)
        };
        let broken = |change: fn(&mut Value)| {
            let mut secret = whole.clone();
            change(&mut secret["data"]);
            format!("{:#}", of_secret(&secret).expect_err("refused"))
        };
        assert!(broken(|data| drop(data.as_object_mut().map(|data| data.remove(KEY)))).contains(KEY));
        assert!(broken(|data| data[CERT] = "%%".into()).contains("base64"));
        assert!(broken(|data| data[CERT] = json!(ByteString(vec![0xff]))).contains("not text"));
        assert!(broken(|data| data[KEY] = data[CERT].clone()).contains("signing key"));
        let other = Authority::create().expect("another");
        let mut mixed = whole.clone();
        mixed["data"][CERT] = json!(ByteString(other.root_pem().as_bytes().to_vec()));
        assert!(format!("{:#}", of_secret(&mixed).expect_err("refused")).contains("another key"));
    }

    #[tokio::test]
    async fn the_root_is_published_and_put_right_when_somebody_changed_it() {
        let fake = Fake::start("127.0.0.1").await;
        let publisher = Publisher::new(api(&fake).await, "culvert-system", "ROOT");
        assert!(publisher.once().await.expect("made"));
        assert!(!publisher.once().await.expect("as it should be"));
        let path = format!("/api/v1/namespaces/culvert-system/configmaps/{CONFIG_MAP}");
        let mut map = publisher.api.get(&path).await.expect("read").expect("there");
        assert_eq!(map["data"][CERT], "ROOT");
        map["data"][CERT] = "forged".into();
        publisher.api.write(Method::Put, &path, &map).await.expect("changed by somebody");
        assert!(publisher.once().await.expect("put right"));
        assert_eq!(publisher.api.get(&path).await.expect("read").expect("there")["data"][CERT], "ROOT");
    }
}
