//! The keeper.
/// Flags of `node-proxy keeper`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}
/// Runs the keeper.
pub fn run(_args: Args) -> anyhow::Result<()> {
    Ok(())
}
