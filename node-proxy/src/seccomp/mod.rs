//! What each role may ask of the kernel.
/// Which filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The keeper.
    Keeper,
    /// The worker.
    Worker,
}
/// Installs the filters of a role.
pub fn install(_role: Role) -> anyhow::Result<()> {
    Ok(())
}
