//! Certificates for a successor worker: one sealed memfd, which the keeper holds and never reads (invariant 3).
//!
//! Layout: magic, then for each certificate a big-endian length and `WorkloadCert::to_secret_bytes`. The memfd is sealed against
//! every change, so what a successor reads is what was written.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use mesh_tls::WorkloadCert;
use rustix::fs::{MemfdFlags, SealFlags};
use zeroize::Zeroizing;

/// Hands the memfd to whoever keeps it; an error is logged and tried again with the next change.
pub type Keep = Arc<dyn Fn(OwnedFd) -> BoxFuture<'static, io::Result<()>> + Send + Sync>;

const MAGIC: &[u8] = b"culvert certificates 1\n";
/// 250 pods with an identity each, 8 KiB for a certificate with its chain and roots, times eight.
const LARGEST: u64 = 16 << 20;

/// What was kept cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Reading the memfd.
    #[error("read kept certificates")]
    Io(#[from] io::Error),
    /// Not what this build writes.
    #[error("kept certificates: {0}")]
    Form(&'static str),
}

/// Writes and seals.
pub(super) fn write<'a>(certs: impl Iterator<Item = &'a WorkloadCert>) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let fd = match rustix::fs::memfd_create("culvert-certificates", flags) {
        // Kernels before 6.3 do not know NOEXEC_SEAL.
        Err(rustix::io::Errno::INVAL) => {
            rustix::fs::memfd_create("culvert-certificates", flags - MemfdFlags::NOEXEC_SEAL)?
        }
        other => other?,
    };
    let mut file = std::fs::File::from(fd);
    file.write_all(MAGIC)?;
    for cert in certs {
        let bytes = cert.to_secret_bytes();
        let length = u32::try_from(bytes.len()).map_err(|_| io::Error::other("a certificate over 4 GiB"))?;
        file.write_all(&length.to_be_bytes())?;
        file.write_all(&bytes)?;
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Reads back. A certificate that cannot be read is left out, and counted in the second value.
pub(super) fn read(fd: OwnedFd) -> Result<(Vec<WorkloadCert>, usize), RestoreError> {
    let seals = rustix::fs::fcntl_get_seals(&fd).map_err(io::Error::from)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(RestoreError::Form("not a sealed memfd"));
    }
    let mut file = std::fs::File::from(fd);
    let length = file.metadata()?.len();
    if length > LARGEST {
        return Err(RestoreError::Form("larger than any node's certificates"));
    }
    file.seek(SeekFrom::Start(0))?;
    // Sized before it is filled: growing would leave copies of keys behind.
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).unwrap_or_default()]);
    file.read_exact(&mut bytes)?;
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(RestoreError::Form("unknown format or version"))?;
    let (mut certs, mut unreadable) = (Vec::new(), 0);
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(4).ok_or(RestoreError::Form("cut short"))?;
        let length = u32::from_be_bytes(head.try_into().map_err(|_| RestoreError::Form("cut short"))?);
        let (one, tail) = tail.split_at_checked(length as usize).ok_or(RestoreError::Form("cut short"))?;
        match WorkloadCert::from_secret_bytes(one) {
            Ok(cert) => certs.push(cert),
            Err(error) => {
                tracing::warn!(%error, "a kept certificate cannot be read and is left out");
                unreadable += 1;
            }
        }
        rest = tail;
    }
    Ok((certs, unreadable))
}
