//! The command-line program `flashwave`: what a device is and can do, whether the kernels are right on it, how fast
//! they are, and the kernels themselves on a user's own tensors.

mod bench;
mod calibrate;
mod ceilings;
mod decode_cost;
mod device;
mod devices;
mod generate;
mod picture;
mod plot;
mod quantize;
mod run;
mod sparsity;
mod study;
mod tune;
mod units;
mod verify;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use device::DeviceArgs;

/// GPU kernels over wgpu, and models made of them.
#[derive(Parser)]
#[command(name = "flashwave", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the adapters: driver, tiers, limits, and which one would be used.
    Devices,
    /// Measures what the device reaches at most: memory bandwidth, arithmetic, the cost of a dispatch.
    Ceilings(ceilings::CeilingsArgs),
    /// Runs the correctness matrix on the device; exit status 1 if a case fails.
    Verify(verify::VerifyArgs),
    /// Times the kernels and reports shares of the device's ceilings.
    Bench(bench::BenchArgs),
    /// Finds the fastest tunings of kernels on this device and keeps them for all later runs.
    Tune(tune::TuneArgs),
    /// Finds thresholds below which a model leaves weights unread, and what that costs.
    Calibrate(calibrate::Calibrate),
    /// Writes text with a model, streamed.
    Generate(generate::Generate),
    /// Runs a kernel on the tensors of a safetensors file.
    Run(run::RunArgs),
    /// Draws a block-sparse attention layout and prints each head's density; needs no device.
    Sparsity(sparsity::SparsityArgs),
    /// Writes a model with quantised weights, or tells what quantising them costs.
    Quantize(quantize::QuantizeArgs),
    /// Compares formats of numbers; needs no device.
    Study(study::StudyArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is an error like any other.
            let code = u8::from(error.use_stderr());
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = match cli.command {
        Command::Devices => devices::run(&cli.device),
        Command::Ceilings(args) => ceilings::run(&cli.device, &args),
        Command::Verify(args) => verify::run(&cli.device, &args),
        Command::Bench(args) => bench::run(&cli.device, &args),
        Command::Tune(args) => tune::run(&cli.device, &args),
        Command::Calibrate(args) => cli.device.open().and_then(|ctx| args.run(&ctx)),
        Command::Generate(args) => cli.device.open().and_then(|ctx| args.run(&ctx)),
        Command::Run(args) => run::run(&cli.device, &args),
        Command::Sparsity(args) => sparsity::run(&args),
        Command::Quantize(args) => quantize::run(&cli.device, &args),
        Command::Study(args) => study::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            use io::Write;
            // If standard error is gone too there is nobody left to tell.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|c| c.downcast_ref::<io::Error>());
    causes.any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
