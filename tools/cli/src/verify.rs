//! `flashwave verify`: the correctness matrix on a user's own device.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use flashwave::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kernels_tests::cases::{FAMILIES, all};
use kernels_tests::{Case, Effort};

use crate::device::{DeviceArgs, heading};

/// Options of `flashwave verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Only this family of kernels
    family: Option<String>,
    /// One case a group
    #[arg(long)]
    quick: bool,
    /// Draw other inputs: any number
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// How the cases of a group went.
#[derive(Default)]
struct Group {
    passed: usize,
    /// The device lacks what the case is about.
    skipped: usize,
    failures: Vec<String>,
    share: f64,
    time: Duration,
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
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for ctx in device.open_each()? {
        writeln!(stdout(), "{}", heading(&ctx))?;
        for group in grouped(all(filter, effort)) {
            let (family, name) = (group[0].family, group[0].group.clone());
            let done = run_group(&ctx, &group);
            report(family, &name, &done)?;
            passed += done.passed;
            failed += done.failures.len();
            skipped += done.skipped;
        }
    }
    if skipped > 0 {
        writeln!(
            stdout(),
            "{skipped} skipped: the device lacks what they need"
        )?;
    }
    writeln!(stdout(), "{passed} passed, {failed} failed")?;
    if failed > 0 {
        bail!("{failed} of {} cases failed", passed + failed);
    }
    Ok(())
}

/// The cases by family and group, in the order in which each was first met.
fn grouped(cases: Vec<Case>) -> Vec<Vec<Case>> {
    let mut groups: Vec<Vec<Case>> = Vec::new();
    for case in cases {
        let same = |g: &&mut Vec<Case>| g[0].family == case.family && g[0].group == case.group;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(case),
            None => groups.push(vec![case]),
        }
    }
    groups
}

fn run_group(ctx: &Context, cases: &[Case]) -> Group {
    let bar = progress(cases);
    let started = Instant::now();
    let mut group = Group::default();
    for case in cases {
        match case.run(ctx) {
            Ok(outcome) if outcome.elements == 0 => group.skipped += 1,
            Ok(outcome) => {
                group.passed += 1;
                group.share = group.share.max(outcome.share);
            }
            Err(failure) => group.failures.push(format!("{}: {failure}", case.name)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    group.time = started.elapsed();
    group
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

fn report(family: &str, name: &str, group: &Group) -> Result<()> {
    let mut out = stdout().lock();
    let verdict = match (group.passed, group.failures.len()) {
        (0, 0) => "skip",
        (_, 0) => "ok",
        _ => "FAILED",
    };
    let label = format!("{family} {name}");
    let (passed, failed) = (group.passed, group.failures.len());
    writeln!(
        out,
        "{verdict:<6} {label:<40} {passed:>4} passed {failed:>3} failed  worst {:.2} of the bound  {:.2} s",
        group.share,
        group.time.as_secs_f64()
    )?;
    for failure in &group.failures {
        writeln!(out, "       {failure}")?;
    }
    // A reader of a pipe sees each group when it is done.
    out.flush()?;
    Ok(())
}
