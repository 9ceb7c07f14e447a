//! `flashwave tune`.

use std::collections::HashSet;
use std::io::{Write, stderr, stdout};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use flashwave::Context;
use flashwave::kernels::ceilings::Ceilings;
use flashwave::loader::Weights;
use flashwave::model::{Llama, embedded};
use flashwave::tuned::{Compared, NOISE, Report, Search, Verdict, classes, compare, tune};
use kernels_tests::benches::{BENCHES, Row, Scale, model};
use serde::Serialize;

use crate::device::{DeviceArgs, heading};
use crate::units::seconds;

/// Families whose planners take tunings, and how names of their classes begin.
const FAMILIES: [(&str, &str); 7] = [
    ("attention", "attention/"),
    ("cache", "attention/"),
    ("gemm", "gemm/gemm "),
    ("gemv", "gemm/gemv "),
    ("mlp", "mlp/"),
    ("norm", "norm/"),
    ("softmax", "softmax/"),
];

/// Pairs of runs, without and with what was found, that the table shows the medians of.
const PAIRS: usize = 9;

/// Within less time ceilings are not measured, and no candidate is left out for being unable to win.
const WORTH_CEILINGS: Duration = Duration::from_secs(10);

/// Options of `flashwave tune`.
#[derive(Args)]
pub struct TuneArgs {
    /// Only this family of kernels: attention, cache, gemm, gemv, mlp, norm, softmax
    family: Option<String>,
    /// Seconds to spend in all
    #[arg(long, default_value_t = 30.0, allow_negative_numbers = true)]
    budget: f64,
    /// The problems of this model: a Hugging Face folder, a .gguf or a llama2.c .bin, "embedded", or "7b", a Llama of that
    /// shape; those of `flashwave bench` if absent
    #[arg(long)]
    model: Option<String>,
    /// Only problems whose name contains PART
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    /// Store nothing
    #[arg(long)]
    dry_run: bool,
}

/// A tuned problem.
#[derive(Serialize)]
struct Line {
    work: String,
    default_us: f64,
    tuned_us: f64,
    speed_up: f64,
    /// Classes whose winners are used, of how many.
    kept: usize,
    classes: usize,
    candidates: usize,
    pruned: usize,
    timed: usize,
    /// Of its last class.
    verdict: String,
    #[serde(skip)]
    of: Vec<String>,
}

/// Tunes, and prints each problem when it is done.
pub fn run(device: &DeviceArgs, args: &TuneArgs) -> Result<()> {
    let family = args.family.as_deref();
    let names = FAMILIES.map(|(name, _)| name);
    if let Some(family) = family.filter(|f| !names.contains(f)) {
        bail!("FAMILY: {family}; allowed: {}", names.join(", "));
    }
    let Some(budget) = Duration::try_from_secs_f64(args.budget).ok() else {
        bail!("--budget: {}; allowed: seconds, at least 0", args.budget);
    };
    let model = args.model.as_deref().map(open_model).transpose()?;
    let ctx = device.open()?;
    let started = Instant::now();
    let part = args.only.as_deref().unwrap_or_default();
    let (caps, scale) = (ctx.capabilities(), Scale::of(ctx.capabilities()));
    let mut rows: Vec<Row> = match model {
        Some(rows) => rows.into(),
        None => BENCHES
            .iter()
            .filter(|b| family.map_or(names.contains(&b.name), |f| f == b.name))
            .flat_map(|b| (b.rows)(caps, scale))
            .collect(),
    };
    rows.retain(|row| row.work.contains(part));
    if rows.is_empty() {
        bail!("--only: {part}; allowed: a part of a problem's name");
    }
    // Of a model all of a step is run, and only these classes are tuned.
    let begin = FAMILIES.iter().find(|f| family == Some(f.0));
    let begin = begin.filter(|_| args.model.is_some()).map_or("", |f| f.1);

    let mut out = stdout().lock();
    if !args.json {
        writeln!(out, "{}", heading(&ctx))?;
    }
    let ceilings = (budget >= WORTH_CEILINGS)
        .then(|| Ceilings::of(&ctx))
        .transpose()?;
    let width = rows.iter().map(|r| r.work.len()).max().unwrap_or(0);
    if !args.json {
        writeln!(
            out,
            "{:<width$} {:>11} {:>11} {:>8}  what of it",
            "work", "default", "tuned", "speed-up"
        )?;
    }
    let mut run = Run {
        ctx: &ctx,
        ceilings: ceilings.as_ref(),
        begin,
        done: HashSet::new(),
        lines: Vec::new(),
    };
    for (i, row) in rows.iter().enumerate() {
        let left = budget.saturating_sub(started.elapsed());
        if left.is_zero() {
            break;
        }
        let line = match run.row(row, left / (rows.len() - i) as u32) {
            Ok(line) => line,
            // The kernels of a row may be more than the device can run.
            Err(error) => {
                writeln!(stderr(), "{}: {error:#}", row.work)?;
                continue;
            }
        };
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string(&line)?)?,
            false => writeln!(out, "{}", table_line(&line, width))?,
        }
        out.flush()?;
        run.lines.push(line);
    }
    let took = started.elapsed();
    summary(&mut out, args.json, &run, rows.len(), took)?;
    let stored = match args.dry_run {
        true => None,
        false => ctx.save_tuned()?,
    };
    if !args.json {
        match stored {
            Some(path) => writeln!(out, "stored in {}", path.display())?,
            None => writeln!(out, "not stored")?,
        }
    }
    Ok(())
}

/// The steps of a model; it is loaded once.
fn open_model(name: &str) -> Result<[Row; 2]> {
    let weights = match name {
        "7b" => None,
        "embedded" => Some(embedded::weights()?),
        path => Some(Weights::open(Path::new(path))?),
    };
    let kept: Arc<Mutex<Option<Llama>>> = Arc::default();
    let weights = Arc::new(weights);
    Ok(model::steps(name, move |ctx| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*kept {
            return Ok(model.clone());
        }
        let model = match &*weights {
            Some(weights) => Llama::load(ctx, weights)?,
            None => model::random_model(ctx)?,
        };
        Ok(kept.insert(model).clone())
    }))
}

struct Run<'a> {
    ctx: &'a Context,
    ceilings: Option<&'a Ceilings>,
    begin: &'a str,
    /// Classes that were decided.
    done: HashSet<String>,
    lines: Vec<Line>,
}

impl Run<'_> {
    /// Tunes a row, and measures what came of it.
    fn row(&mut self, row: &Row, budget: Duration) -> Result<Line> {
        let (ctx, started) = (self.ctx, Instant::now());
        let mut prepared = row.prepare(ctx)?;
        let mut body = |pass: &mut flashwave::Pass<'_>, run: usize| prepared.record(pass, run);
        let of = classes(ctx, &mut body)?;
        let search = Search {
            budget: budget.saturating_sub(started.elapsed()),
            ceilings: self.ceilings,
            skips: &|class| self.done.contains(class) || !class.starts_with(self.begin),
        };
        let reports = tune(ctx, &search, &mut body)?;
        // What time did not suffice for, another row may have time for.
        let decided = reports.iter().filter(|r| r.verdict != Verdict::OutOfTime);
        self.done.extend(decided.map(|r| r.class.clone()));
        let tuned = &ctx.capabilities().tuned;
        let kept = of
            .iter()
            .filter(|class| tuned.winner(class).is_some())
            .count();
        let mut line = Line::new(row, of, &reports, kept);
        let compared = match kept {
            // The same kernels: nothing to compare.
            0 => {
                let us = reports
                    .first()
                    .map(|r| r.default.1)
                    .filter(|_| line.of.len() == 1);
                let us = us.map_or_else(|| compare(ctx, &mut body, 1).map(|c| c.default_us), Ok)?;
                Compared {
                    default_us: us,
                    tuned_us: us,
                    speed_up: 1.0,
                }
            }
            _ => compare(ctx, &mut body, PAIRS)?,
        };
        line.set(compared);
        if compared.speed_up < 1.0 - NOISE {
            self.drop_winners(&line.of);
            let tried = 1.0 / compared.speed_up;
            line.back(&format!("dropped: {tried:.2} times as slow here"));
        }
        Ok(line)
    }

    /// Gives up winners that made a row slower: what else had them is as it was, too.
    fn drop_winners(&mut self, of: &[String]) {
        let tuned = &self.ctx.capabilities().tuned;
        for class in of {
            if tuned.winner(class).is_some() {
                tuned.set(class, None);
            }
        }
        let shared = |line: &&mut Line| line.of.iter().any(|class| of.contains(class));
        for line in self.lines.iter_mut().filter(shared) {
            line.back("dropped: slower in another row");
        }
    }
}

impl Line {
    fn new(row: &Row, of: Vec<String>, reports: &[Report], kept: usize) -> Self {
        let sum = |f: fn(&Report) -> usize| reports.iter().map(f).sum();
        let winners = reports.iter().filter(|r| r.verdict == Verdict::Won);
        let winner = winners.filter_map(|r| Some(&r.best.as_ref()?.0)).next();
        let verdict = match (winner, reports, kept) {
            (Some(winner), [_], _) => format!("kept: {winner}"),
            (_, [], 0) if of.is_empty() => "nothing to tune".into(),
            (_, [], 0) => "default, as found before".into(),
            (_, [], _) => "as tuned before".into(),
            (_, [one], _) => one.verdict.to_string(),
            _ => format!("kept for {kept} of {} classes", of.len()),
        };
        Self {
            work: row.work.clone(),
            default_us: 0.0,
            tuned_us: 0.0,
            speed_up: 1.0,
            kept,
            classes: of.len(),
            candidates: sum(|r| r.candidates),
            pruned: sum(|r| r.pruned),
            timed: sum(|r| r.timed),
            verdict,
            of,
        }
    }

    fn set(&mut self, compared: Compared) {
        self.default_us = compared.default_us;
        self.tuned_us = compared.tuned_us;
        self.speed_up = compared.speed_up;
    }

    /// As it was before.
    fn back(&mut self, why: &str) {
        self.tuned_us = self.default_us;
        self.speed_up = 1.0;
        self.kept = 0;
        self.verdict = why.into();
    }
}

fn table_line(line: &Line, width: usize) -> String {
    let us = |us: f64| format!("{us:.1} us");
    format!(
        "{:<width$} {:>11} {:>11} {:>8.2}  {} ({} of {} timed, {} cannot win)",
        line.work,
        us(line.default_us),
        us(line.tuned_us),
        line.speed_up,
        line.verdict,
        line.timed,
        line.candidates,
        line.pruned
    )
}

fn summary(
    out: &mut impl Write,
    json: bool,
    run: &Run<'_>,
    rows: usize,
    took: Duration,
) -> Result<()> {
    let speeds = || run.lines.iter().map(|l| l.speed_up);
    let count = run.lines.len().max(1) as f64;
    let mean = (speeds().map(f64::ln).sum::<f64>() / count).exp();
    let worst = speeds().fold(f64::INFINITY, f64::min);
    let best = speeds().fold(0.0, f64::max);
    let faster = run.lines.iter().filter(|l| l.kept > 0).count();
    let (reached, classes) = (run.lines.len(), run.done.len());
    if json {
        let line = serde_json::json!({
            "rows": reached, "of": rows, "classes": classes, "rows_tuned": faster, "geometric_mean": mean,
            "worst": worst, "best": best, "seconds": took.as_secs_f64(),
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{reached} of {rows} rows reached in {}: {classes} classes, {faster} rows with winners",
        seconds(took.as_secs_f64())
    )?;
    if reached > 0 {
        writeln!(
            out,
            "speed-up: geometric mean {mean:.3}, worst {worst:.2}, best {best:.2}"
        )?;
    }
    Ok(())
}
