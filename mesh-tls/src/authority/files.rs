//! The authority on disk: `root-key.pem` (0600, PKCS #8) and `root-cert.pem` (0644) in a directory of mode 0700.
//!
//! Both are written beside and renamed into place, the key first: a crash in between leaves a key without a certificate, and the
//! next start makes the certificate again from it, which changes nothing for those who trust the key.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{Authority, AuthorityError};
use crate::key::PrivateKey;

/// The signing key.
const KEY: &str = "root-key.pem";
/// The roots.
const CERT: &str = "root-cert.pem";
/// A key or a bundle of roots is far below this.
const LONGEST_FILE: u64 = 256 * 1024;

/// The authority's directory is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// An operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others could read or replace the key.
    #[error("{path} has mode {mode:04o}: others could read the signing key; set it to {wanted:04o}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
    /// One of the two files is not there.
    #[error("{0} is missing beside {1}: put it back, or move {1} away to have a new authority made")]
    Missing(PathBuf, PathBuf),
    /// The key file does not hold a key that we can use.
    #[error("{path}: {cause}")]
    Key {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

fn io<T>(what: &'static str, path: &Path, result: io::Result<T>) -> Result<T, FileError> {
    result.map_err(|source| FileError::Io { what, path: path.to_owned(), source })
}

impl Authority {
    /// Reads the authority from the directory.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let key = read_key(dir)?;
        let path = dir.join(CERT);
        let root = io("read", &path, read(&path))?;
        Self::from_parts(key, root.as_str().to_owned())
    }

    /// Reads the authority from the directory, or makes one there. Given files are used as they are.
    pub fn load_or_create(dir: &Path) -> Result<Self, AuthorityError> {
        if !dir.exists() {
            io("make directory", dir, DirBuilder::new().recursive(true).mode(0o700).create(dir))?;
        }
        private(dir, 0o700)?;
        let (key_path, cert_path) = (dir.join(KEY), dir.join(CERT));
        match (key_path.exists(), cert_path.exists()) {
            (true, true) => return Self::load(dir),
            (false, true) => return Err(FileError::Missing(key_path, cert_path).into()),
            (false, false) => {
                let text = key_pem(&PrivateKey::generate()?);
                io("write", &key_path, place(dir, KEY, 0o600, text.as_bytes()))?;
            }
            (true, false) => {}
        }
        let root = Self::self_signed(&read_key(dir)?)?;
        io("write", &cert_path, place(dir, CERT, 0o644, root.as_bytes()))?;
        Self::load(dir)
    }
}

fn read_key(dir: &Path) -> Result<PrivateKey, AuthorityError> {
    let path = dir.join(KEY);
    private(&path, 0o600)?;
    let text = io("read", &path, read(&path))?;
    Ok(key_of_pem(&text).map_err(|cause| FileError::Key { path, cause })?)
}

/// The key that a PEM text holds, or what is wrong with it.
pub(super) fn key_of_pem(text: &str) -> Result<PrivateKey, String> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| format!("holds no private key in PKCS #8 PEM: {error:?}"))?;
    let pkcs8 = Zeroizing::new(der.secret_pkcs8_der().to_vec());
    drop(Zeroizing::new(der));
    PrivateKey::from_pkcs8(pkcs8).map_err(|error| error.to_string())
}

/// Secret.
pub(super) fn key_pem(key: &PrivateKey) -> Zeroizing<String> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8()));
    Zeroizing::new(to_pem("PRIVATE KEY", der.secret_der()))
}

/// Nobody but the owner may read or write it.
fn private(path: &Path, wanted: u32) -> Result<(), FileError> {
    let mode = io("look at", path, fs::metadata(path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Open { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    File::open(path)?.take(LONGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes beside, syncs, renames: a reader never sees half of it.
fn place(dir: &Path, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?; // whatever the umask is
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// RFC 7468 text.
fn to_pem(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(base64(der));
    let mut out = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 64);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in body.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&b| char::from(b)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &b| word << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = (word >> (18 - 6 * place)) as usize & 0x3f;
            out.push(if place <= chunk.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    out
}
