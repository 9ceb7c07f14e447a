//! `flashwave bench`.

use std::fs::{File, OpenOptions};
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flashwave::Context;
use flashwave::kernels::ceilings::Ceilings;
use kernels_tests::benches::heater::Heater;
use kernels_tests::benches::{BENCHES, Measurement, Row, Scale, measure, model};
use serde::Serialize;

use crate::decode_cost;
use crate::device::{DeviceArgs, checks_name, heading};
use crate::plot::Figures;
use crate::units::{bytes, rate, seconds};

/// Work ahead of every timed row, so that the card's clocks are up.
const HEAT: Duration = Duration::from_millis(120);

/// `--only` for what MLPs over a budget cost: timed by the host, which is in the loop, so not a row.
const OFFLOAD: &str = "offload";

/// Options of `flashwave bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Only this family of kernels
    family: Option<String>,
    /// Only rows whose name contains PART (gemm, f16, 4096, …); of the family model, `offload`: MLPs over a budget
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Print a JSON object a line, as torch_baseline.py does
    #[arg(long)]
    json: bool,
    /// Few repetitions
    #[arg(long)]
    quick: bool,
    /// Time every candidate tuning of each problem and name the best
    #[arg(long)]
    sweep: bool,
    /// Append the rows to this CSV file (benches/record/<device>/<date>.csv)
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Draw the rows that figures show into this folder, as SVG; of the family hyena what tokens cost along a text
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
}

/// A timed row.
#[derive(Serialize)]
struct Line {
    work: String,
    by: &'static str,
    us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tbps: Option<f64>,
    /// Of the device's own ceiling, which `of` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
    of: &'static str,
    recipe: String,
    family: &'static str,
    min_us: f64,
    spread: f64,
    /// Of the row of which this one does a part: work and time over that row's, if it was timed before.
    #[serde(skip_serializing_if = "Option::is_none")]
    work_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_share: Option<f64>,
}

/// Times the rows and prints each when it is done.
pub fn run(device: &DeviceArgs, args: &BenchArgs) -> Result<()> {
    let filter = args.family.as_deref().unwrap_or_default();
    if !BENCHES.iter().any(|b| b.name.contains(filter)) {
        let names: Vec<&str> = BENCHES.iter().map(|b| b.name).collect();
        bail!("FAMILY: {filter}; allowed: {}", names.join(", "));
    }
    let ctx = device.open()?;
    let caps = ctx.capabilities();
    let scale = Scale::of(caps);
    let part = args.only.as_deref().unwrap_or_default();
    let rows: Vec<Row> = BENCHES
        .iter()
        .filter(|b| b.name.contains(filter))
        .flat_map(|b| {
            if args.sweep {
                (b.sweep)(caps, scale)
            } else {
                (b.rows)(caps, scale)
            }
        })
        .filter(|row| row.work.contains(part))
        .collect();
    if rows.is_empty() && part != OFFLOAD {
        bail!("--only: {part}; allowed: a part of a row's name");
    }
    let mut record = args.record.as_deref().map(open_record).transpose()?;
    let mut out = stdout().lock();
    if !args.json {
        writeln!(out, "{}", heading(&ctx))?;
    }
    let ceilings = Ceilings::of(&ctx)?;
    let heater = Heater::new(&ctx, HEAT)?;
    if !args.json {
        writeln!(out, "{}", header(&rows))?;
    }
    let repeats = if args.quick { 5 } else { 15 };
    let mut lines: Vec<Line> = Vec::new();
    let mut failed = 0;
    let mut figures = Figures::default();
    for row in &rows {
        let line = match time(&ctx, row, repeats, &ceilings, &heater) {
            Ok(line) => beside(row, line, &lines),
            // A sweep tries tunings that a device may refuse; a row of the table has to run.
            Err(error) => {
                failed += 1;
                writeln!(std::io::stderr(), "{}: {error:#}", row.work)?;
                continue;
            }
        };
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        } else {
            writeln!(out, "{}", table_line(&rows, row, &line))?;
        }
        out.flush()?;
        if let Some(file) = &mut record {
            write_record(file, &ctx, &line)?;
        }
        figures.add(row, line.us);
        lines.push(line);
    }
    if let Some(folder) = &args.plot {
        for path in figures.draw(folder, &ctx.capabilities().name)? {
            writeln!(std::io::stderr(), "drawn: {}", path.display())?;
        }
    }
    if "model".contains(filter) && part.is_empty() && !args.sweep {
        host_cost(&mut out, &ctx, args.json)?;
    }
    if filter == "model" && part == OFFLOAD {
        offload_costs(&mut out, &ctx)?;
    }
    if let (Some(folder), "hyena") = (&args.plot, filter) {
        let file = folder.join("hyena_decode.svg");
        decode_cost::run(&mut out, &ctx, &ceilings, &file)?;
    }
    if args.sweep {
        best(&mut out, &lines, args.json)?;
    } else if failed > 0 {
        bail!("{failed} of {} rows failed", rows.len());
    }
    Ok(())
}

fn time(
    ctx: &Context,
    row: &Row,
    repeats: usize,
    ceilings: &Ceilings,
    heater: &Heater,
) -> Result<Line> {
    let mut prepared = row.prepare(ctx)?;
    let Measurement {
        us, min_us, spread, ..
    } = measure(ctx, &mut prepared, repeats, heater)?;
    let terascale = |amount: f64| (amount > 0.0).then(|| digits(amount / us / 1e6));
    Ok(Line {
        work: row.work.clone(),
        by: "flashwave",
        us: digits(us),
        tflops: terascale(row.flops),
        tbps: terascale(row.bytes),
        share: row.share(us, ceilings).map(digits),
        of: row.ceiling.name(),
        recipe: prepared.recipe,
        family: row.family,
        min_us: digits(min_us),
        spread: digits(spread),
        work_share: row.kept.as_ref().map(|k| digits(k.share)),
        time_share: None,
    })
}

/// With its time over that of the row of which it does a part.
fn beside(row: &Row, line: Line, before: &[Line]) -> Line {
    let whole = row.kept.as_ref();
    let whole = whole.and_then(|k| before.iter().find(|l| l.work == k.of));
    Line {
        time_share: whole.map(|whole| digits(line.us / whole.us)),
        ..line
    }
}

/// The processor's time for a dispatch of a decode step.
fn offload_costs(out: &mut impl Write, ctx: &Context) -> Result<()> {
    let costs = model::offload_costs(ctx)?;
    let mlps = costs.last().map_or(0, |c| c.streamed.total_bytes);
    writeln!(
        out,
        "half the neurons fire (cats 0.5); the MLPs' weights are {}",
        bytes(mlps)
    )?;
    writeln!(out, "on the device  a token   hits  streamed a token")?;
    for cost in costs {
        let tokens = cost.tokens as u64;
        writeln!(
            out,
            "{:>12.0}%  {:>8}  {:>4.0}%  {}",
            100.0 * cost.share,
            seconds(cost.per_token.as_secs_f64()),
            match cost.streamed.fired {
                0 => 100.0,
                _ => 100.0 * cost.streamed.hit_rate(),
            },
            bytes(cost.streamed.bytes / tokens)
        )?;
    }
    Ok(())
}

fn host_cost(out: &mut impl Write, ctx: &Context, json: bool) -> Result<()> {
    let cost = model::host_cost(ctx)?;
    let us = digits(cost.per_dispatch.as_secs_f64() * 1e6);
    let work = format!(
        "host cost of a dispatch, {} in a decode step",
        cost.dispatches
    );
    if json {
        let line = serde_json::json!({"work": work, "by": "flashwave", "us": us});
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{work}: {us} us")?;
    }
    Ok(())
}

/// Four significant digits.
fn digits(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

fn width(rows: &[Row]) -> usize {
    rows.iter().map(|r| r.work.len()).max().unwrap_or(0)
}

fn header(rows: &[Row]) -> String {
    let width = width(rows);
    format!(
        "{:<width$} {:>11} {:>7} {:>13} {:>7} of {:<18} recipe",
        "work", "time", "spread", "rate", "share", "ceiling"
    )
}

fn table_line(rows: &[Row], row: &Row, line: &Line) -> String {
    let width = width(rows);
    let time = format!("{:.1} us", line.us);
    let spread = format!("{:.0}%", line.spread * 100.0);
    let speed = match (line.tflops, line.tbps) {
        (Some(t), _) => rate(t * 1e12, "FLOP/s"),
        (None, Some(t)) => rate(t * 1e12, "B/s"),
        _ => String::new(),
    };
    let share = match line.share {
        Some(share) => format!("{:.1}%", share * 100.0),
        None => "-".into(),
    };
    let part = match (&row.kept, line.time_share) {
        (Some(kept), Some(time)) => format!(
            "work {:.3}, time {time:.3} of all {}; ",
            kept.share, kept.unit
        ),
        _ => String::new(),
    };
    format!(
        "{:<width$} {time:>11} {spread:>7} {speed:>13} {share:>7} of {:<18} {part}{}",
        line.work, line.of, line.recipe
    )
}

/// The fastest recipe of each problem.
fn best(out: &mut impl Write, lines: &[Line], json: bool) -> Result<()> {
    let mut works: Vec<&str> = Vec::new();
    for line in lines {
        if !works.contains(&line.work.as_str()) {
            works.push(&line.work);
        }
    }
    if !json {
        writeln!(out, "\nbest of each:")?;
    }
    for work in works {
        let of_it = lines.iter().filter(|l| l.work == work);
        let Some(line) = of_it.min_by(|a, b| a.us.total_cmp(&b.us)) else {
            continue;
        };
        if json {
            let best = serde_json::json!({"best": work, "us": line.us, "share": line.share, "recipe": line.recipe});
            writeln!(out, "{best}")?;
        } else {
            let share = line.share.unwrap_or(0.0) * 100.0;
            writeln!(
                out,
                "{work}: {:.1} us, {share:.1}%: {}",
                line.us, line.recipe
            )?;
        }
    }
    Ok(())
}

const COLUMNS: &str = "device,driver,checks,family,work,recipe,us,min_us,spread,tflops,tbps,share,of,work_share,time_share";

fn open_record(path: &Path) -> Result<File> {
    let named = || path.display().to_string();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(named)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(named)?;
    if file.metadata().with_context(named)?.len() == 0 {
        writeln!(file, "{COLUMNS}").with_context(named)?;
    }
    Ok(file)
}

fn write_record(file: &mut File, ctx: &Context, line: &Line) -> Result<()> {
    let caps = ctx.capabilities();
    let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    let fields = [
        caps.name.clone(),
        caps.driver.clone(),
        checks_name(ctx).into(),
        line.family.into(),
        line.work.clone(),
        line.recipe.clone(),
        line.us.to_string(),
        line.min_us.to_string(),
        line.spread.to_string(),
        number(line.tflops),
        number(line.tbps),
        number(line.share),
        line.of.into(),
        number(line.work_share),
        number(line.time_share),
    ];
    // No field has a quote; names and drivers may have commas.
    let quoted = fields.map(|f| match f.contains(',') {
        true => format!("\"{f}\""),
        false => f,
    });
    writeln!(file, "{}", quoted.join(","))?;
    Ok(())
}
