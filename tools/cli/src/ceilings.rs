//! `flashwave ceilings`.

use std::io::{Write, stdout};

use anyhow::Result;
use clap::Args;
use flashwave::kernels::ceilings::{Ceilings, Probe, Timer};

use crate::device::{DeviceArgs, heading};
use crate::units::{rate, seconds};

/// Options of `flashwave ceilings`.
#[derive(Args)]
pub struct CeilingsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(device: &DeviceArgs, args: &CeilingsArgs) -> Result<()> {
    let ctx = device.open()?;
    let mut out = stdout().lock();
    if !args.json {
        writeln!(out, "{}", heading(&ctx))?;
    }
    let ceilings = Ceilings::of(&ctx)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&ceilings)?)?;
        return Ok(());
    }
    let timer = match ceilings.timer {
        Timer::Gpu => "GPU timestamps",
        Timer::Host => "the host's clock: the device has no timestamps",
    };
    writeln!(out, "timed by {timer}")?;
    for probe in Probe::ALL.into_iter().filter(|p| *p != Probe::Empty) {
        let unit = match probe {
            Probe::Read | Probe::Copy => "B/s",
            Probe::Int8 => "OP/s",
            _ => "FLOP/s",
        };
        let value = match (ceilings.rate(probe), probe.missing(ctx.capabilities())) {
            (Some(value), _) => rate(value, unit),
            (None, why) => format!("skipped: {}", why.unwrap_or("not measured")),
        };
        writeln!(out, "{:<26} {value}", probe.name())?;
    }
    let gpu = seconds(ceilings.dispatch_gpu);
    let host = seconds(ceilings.dispatch_host);
    writeln!(
        out,
        "{:<26} {gpu} of the GPU, {host} of the host",
        Probe::Empty.name()
    )?;
    Ok(())
}
