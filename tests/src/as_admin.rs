//! A client of a cluster's API server with the administrator's rights: for what is too much, or too fast, for kubectl.

use anyhow::Result;
use cluster::Cluster;
use mesh_kube::Api;

/// Work with such a client, where the API server can be reached: on the fabric.
pub(crate) fn with_api<T: Send>(cluster: &Cluster, work: impl AsyncFnOnce(Api) -> Result<T> + Send) -> Result<T> {
    let kubeconfig = cluster.kubeconfig();
    cluster.lab().fabric().in_netns(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { work(Api::connect(Some(&kubeconfig)).await?).await })
    })
}
