//! The boundary between those who know where objects come from and those who decide by them.

use mesh_api::manifests::{Objects, Rejected};
use mesh_model::PodName;

/// Where objects come from. Its user waits for [`Source::changed`], then reads; nobody is told *what* changed, so that every source
/// leads to the same decision.
pub trait Source: Send + 'static {
    /// Resolves when there may be something new since the last reading; a burst is one change. Before the first reading: when everything
    /// has been heard once. May be dropped half-way if a reading follows.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Hands everything known to `work`, on a thread that may block. Not to be dropped half-way.
    fn read<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Objects, &[Rejected]) -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Ended>> + Send;

    /// A pod that must be there is not known: look for it now rather than wait. What is found is a change.
    fn fetch(&mut self, pod: &PodName);
}

/// The reading panicked: a bug. What was known before it stays.
#[derive(Debug, thiserror::Error)]
#[error("reading the source ended badly")]
pub struct Ended;
