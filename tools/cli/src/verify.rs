//! `flashwave verify`: the correctness matrix on a user's own device.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use flashwave::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kernels_tests::cases::{FAMILIES, all};
use kernels_tests::{Case, Effort, Tally, grouped};

use crate::device::{DeviceArgs, heading};

/// Options of `flashwave verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Only this family of kernels, or those whose names contain it
    family: Option<String>,
    /// One case a group
    #[arg(long)]
    quick: bool,
    /// Draw other inputs: any number
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Runs the cases and prints a line a group.
pub fn run(device: &DeviceArgs, args: &VerifyArgs) -> Result<()> {
    let filter = args.family.as_deref().unwrap_or_default();
    if !FAMILIES.iter().any(|f| f.name.contains(filter)) {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        bail!("FAMILY: {filter}; allowed: {}", names.join(", "));
    }
    if let Some(seed) = args.seed {
        kernels_tests::set_seed(seed);
    }
    let effort = if args.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let mut all_groups = Tally::default();
    for ctx in device.open_each()? {
        writeln!(stdout(), "{}\ncases: {effort}", heading(&ctx))?;
        for group in grouped(all(filter, effort)) {
            let (family, name) = (group[0].family, group[0].group.clone());
            let (tally, time) = run_group(&ctx, &group);
            report(family, &name, &tally, time)?;
            all_groups.merge(tally);
        }
    }
    for (missing, count) in &all_groups.skipped {
        writeln!(stdout(), "{count} skipped: {missing}")?;
    }
    let (passed, failed) = (all_groups.passed, all_groups.failures.len());
    writeln!(stdout(), "{passed} passed, {failed} failed")?;
    if failed > 0 {
        bail!("{failed} of {} cases failed", passed + failed);
    }
    Ok(())
}

fn run_group(ctx: &Context, cases: &[Case]) -> (Tally, Duration) {
    let bar = progress(cases);
    let started = Instant::now();
    let mut tally = Tally::default();
    for case in cases {
        tally.add(case, case.run(ctx));
        bar.inc(1);
    }
    bar.finish_and_clear();
    (tally, started.elapsed())
}

fn progress(cases: &[Case]) -> ProgressBar {
    let target = if stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(cases.len() as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}") {
        bar.set_style(style);
    }
    bar.set_message(format!("{} {}", cases[0].family, cases[0].group));
    bar
}

fn report(family: &str, name: &str, tally: &Tally, time: Duration) -> Result<()> {
    let mut out = stdout().lock();
    let label = format!("{family} {name}");
    let (verdict, passed, failed) = (tally.verdict(), tally.passed, tally.failures.len());
    writeln!(
        out,
        "{verdict:<6} {label:<40} {passed:>4} passed {failed:>3} failed  worst {:.2} of the bound  {:.2} s",
        tally.share,
        time.as_secs_f64()
    )?;
    for failure in &tally.failures {
        writeln!(out, "       {failure}")?;
    }
    // A reader of a pipe sees each group when it is done.
    out.flush()?;
    Ok(())
}
