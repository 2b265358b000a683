//! pid 1 of the worker's container.
/// How many workers in a row ended within ten seconds of their start.
pub fn quick_crashes() -> u32 {
    0
}
/// Hardens the child.
pub fn harden_child() -> anyhow::Result<()> {
    Ok(())
}
/// Supervises.
pub fn run(_format: mesh_daemon::logs::Format) -> anyhow::Result<()> {
    Ok(())
}
