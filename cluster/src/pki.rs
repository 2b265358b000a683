//! Keys, certificates and kubeconfigs of one cluster: ECDSA P-256, made for it and deleted with it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

/// How long certificates are good for; a cluster stands for minutes or days.
const VALID: Duration = Duration::days(365);

/// The cluster's authority and the directory everything is written to.
pub(crate) struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Who a certificate is for.
pub(crate) enum Use {
    /// A server under these names and addresses.
    Server { dns: Vec<String>, ips: Vec<IpAddr> },
    /// A client; Kubernetes reads its user from the common name and its groups from the organisations.
    Client,
}

impl Pki {
    /// Makes the directory (0700), the authority and the key that signs service account tokens.
    pub(crate) fn create(dir: &Path) -> Result<Pki> {
        fs::DirBuilder::new().mode(0o700).create(dir).with_context(|| format!("make {}", dir.display()))?;
        let key = KeyPair::generate().context("make the authority's key")?;
        let mut params = params("culvert-cluster", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).context("sign the authority")?;
        write(&dir.join("ca.crt"), &certificate.pem())?;
        write(&dir.join("ca.key"), &key.serialize_pem())?;
        let tokens = KeyPair::generate().context("make the key of service account tokens")?;
        write(&dir.join("sa.key"), &tokens.serialize_pem())?;
        write(&dir.join("sa.pub"), &tokens.public_key_pem())?;
        Ok(Pki { dir: dir.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// `NAME.crt` and `NAME.key`.
    pub(crate) fn issue(&self, name: &str, common_name: &str, organisation: Option<&str>, to: Use) -> Result<()> {
        let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
        let mut params = params(common_name, organisation);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match to {
            Use::Server { dns, ips } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                let dns = dns.into_iter().map(|name| Ok(SanType::DnsName(name.try_into()?)));
                params.subject_alt_names =
                    dns.chain(ips.into_iter().map(|ip| Ok(SanType::IpAddress(ip)))).collect::<Result<_>>()?;
            }
            Use::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("sign {name}"))?;
        write(&self.dir.join(format!("{name}.crt")), &certificate.pem())?;
        write(&self.dir.join(format!("{name}.key")), &key.serialize_pem())
    }

    /// A client's certificate, and `NAME.conf`, with which it finds the API server.
    pub(crate) fn client(&self, name: &str, common_name: &str, organisation: Option<&str>, server: &str) -> Result<()> {
        self.issue(name, common_name, organisation, Use::Client)?;
        let path = |file: String| self.dir.join(file).display().to_string();
        // JSON is YAML.
        let conf = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "culvert", "cluster": {
                "server": server, "certificate-authority": path("ca.crt".into()) } }],
            "users": [{ "name": name, "user": {
                "client-certificate": path(format!("{name}.crt")), "client-key": path(format!("{name}.key")) } }],
            "contexts": [{ "name": "culvert", "context": { "cluster": "culvert", "user": name } }],
            "current-context": "culvert",
        });
        write(&self.dir.join(format!("{name}.conf")), &format!("{conf:#}\n"))
    }
}

fn params(common_name: &str, organisation: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + VALID;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params
}

/// Readable by root alone, from its first byte on.
fn write(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("write {}", path.display()))
}
