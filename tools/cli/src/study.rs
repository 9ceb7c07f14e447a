//! `flashwave study formats`: how much noise formats add, on several distributions (the comparison of FP8 versus INT8,
//! arXiv 2303.17951, made again). Needs no device.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use flashwave::loader::Weights;
use flashwave::model::embedded;
use flashwave::quant::{Format, MiniFloat, Overflow, Scale, Specials, quantize};
use kernels_tests::inputs::Random;
use plotters::prelude::*;

/// Options of `flashwave study`.
#[derive(Args)]
pub struct StudyArgs {
    #[command(subcommand)]
    study: Study,
}

#[derive(Subcommand)]
enum Study {
    /// Signal-to-quantisation-noise ratio of every format and of the splits of FP8.
    Formats(FormatsArgs),
}

#[derive(Args)]
struct FormatsArgs {
    /// A model whose own weights are a column; the embedded one if absent
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Draw the table into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Seed of the random inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Rows and columns of the inputs: a scale for a row of 1024, or for groups in it.
const SHAPE: [usize; 2] = [64, 1024];

/// Runs the command.
pub fn run(args: &StudyArgs) -> Result<()> {
    let Study::Formats(args) = &args.study;
    let inputs = inputs(args)?;
    let mut table: Vec<(String, f64, Vec<f64>)> = Vec::new();
    for exponent in 2..=5 {
        let float = MiniFloat::new(
            exponent,
            7 - exponent,
            (1 << (exponent - 1)) - 1,
            match exponent {
                5 => Specials::Ieee,
                4 => Specials::Nan,
                _ => Specials::None,
            },
        );
        let ratios = inputs.iter().map(|(_, x)| ratio(x, &by_row(float, x)));
        table.push((
            format!("FP8 E{exponent}M{} row", 7 - exponent),
            8.03,
            ratios.collect(),
        ));
    }
    for (name, format) in Format::NAMED {
        if matches!(format.scale, Scale::ByteF16(_)) {
            continue;
        }
        let mut bits = 0.0;
        let mut ratios = Vec::new();
        for (_, x) in &inputs {
            let matrix = quantize(format, SHAPE, x)?;
            bits = 32.0 * matrix.words().len() as f64 / x.len() as f64;
            ratios.push(ratio(x, &matrix.decode()));
        }
        table.push((name.to_owned(), bits, ratios));
    }
    let mut out = stdout().lock();
    write!(out, "{:<14} {:>6}", "SQNR in dB", "bits")?;
    for (name, _) in &inputs {
        write!(out, " {name:>11}")?;
    }
    writeln!(out)?;
    for (name, bits, ratios) in &table {
        write!(out, "{name:<14} {bits:>6.2}")?;
        for ratio in ratios {
            write!(out, " {ratio:>11.1}")?;
        }
        writeln!(out)?;
    }
    if let Some(path) = &args.svg {
        let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
        draw(path, &names, &table).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Numbers of each distribution, and the weights of a model.
fn inputs(args: &FormatsArgs) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let mut random = Random::new(args.seed);
    let n = SHAPE[0] * SHAPE[1];
    let mut draw = |f: &dyn Fn(&mut Random) -> f64| -> Vec<f32> {
        (0..n).map(|_| f(&mut random) as f32).collect()
    };
    let gaussian = draw(&Random::normal);
    let uniform = draw(&|r| 2.0 * r.uniform() - 1.0);
    // Student's t with four degrees of freedom.
    let heavy = draw(&|r| {
        let chi: f64 = (0..4).map(|_| r.normal().powi(2)).sum();
        r.normal() / (chi / 4.0).sqrt()
    });
    let outliers = draw(&|r| {
        let x = r.normal();
        if r.uniform() < 0.005 { 20.0 * x } else { x }
    });
    let weights = match &args.model {
        Some(path) => Weights::open(path)?,
        None => embedded::weights()?,
    };
    let mut own = Vec::new();
    for name in weights.names() {
        let tensor = weights.tensor(name)?;
        if tensor.shape.len() == 2 && !name.contains("embed") && own.len() < n {
            own.extend(tensor.to_f32()?);
        }
    }
    let own: Vec<f32> = own.iter().copied().cycle().take(n).collect();
    Ok(vec![
        ("gaussian", gaussian),
        ("uniform", uniform),
        ("student t4", heavy),
        ("outliers", outliers),
        ("weights", own),
    ])
}

/// The numbers in a type, each row scaled so that its largest is the type's.
fn by_row(float: MiniFloat, x: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = most / float.largest();
        let value = |&v: &f32| {
            let code = float.encode(v / scale, Overflow::Saturate);
            f64::from(float.decode(code)) * f64::from(scale)
        };
        row.iter().map(value).collect()
    };
    x.chunks(SHAPE[1]).flat_map(row).collect()
}

/// Signal to quantisation noise in decibels.
fn ratio(x: &[f32], y: &[f64]) -> f64 {
    let signal: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let noise: f64 = x
        .iter()
        .zip(y)
        .map(|(&x, y)| (f64::from(x) - y).powi(2))
        .sum();
    10.0 * (signal / noise.max(f64::MIN_POSITIVE)).log10()
}

/// Ratios over bits, a series a distribution.
fn draw(
    path: &Path,
    names: &[&str],
    table: &[(String, f64, Vec<f64>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (1100, 640)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = table
        .iter()
        .flat_map(|(_, _, r)| r)
        .copied()
        .fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption("Signal to quantisation noise", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(120)
        .y_label_area_size(50)
        .build_cartesian_2d(0f64..table.len() as f64, 0f64..most * 1.05)?;
    let labels: BTreeMap<usize, &str> = table
        .iter()
        .enumerate()
        .map(|(i, (name, _, _))| (i, &**name))
        .collect();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("dB")
        .x_labels(table.len())
        .x_label_formatter(&|v| labels.get(&(*v as usize)).map_or("", |l| l).to_string())
        .x_label_style(
            ("sans-serif", 12)
                .into_font()
                .transform(FontTransform::Rotate90),
        )
        .label_style(("sans-serif", 13))
        .draw()?;
    for (s, name) in names.iter().enumerate() {
        let color = Palette99::pick(s).to_rgba();
        let points = table
            .iter()
            .enumerate()
            .map(|(i, (_, _, r))| (i as f64 + 0.5, r[s]));
        let drawn = chart.draw_series(points.map(|p| Circle::new(p, 4, color.filled())))?;
        drawn
            .label(*name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}
