//! `flashwave run`.
use crate::device::DeviceArgs;
/// Options of `flashwave run`.
#[derive(clap::Args)]
pub struct RunArgs {}
/// Runs.
pub fn run(_: &DeviceArgs, _: &RunArgs) -> anyhow::Result<()> {
    anyhow::bail!("soon")
}
