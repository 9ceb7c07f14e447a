//! Figures of benches: speed-up against density, TFLOP/s against length.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use kernels_tests::benches::{Mark, Measure, Row};
use plotters::prelude::*;

/// The timed rows that figures show.
#[derive(Default)]
pub struct Figures {
    /// Time by work.
    times: BTreeMap<String, f64>,
    points: Vec<(Mark, Timed)>,
}

struct Timed {
    us: f64,
    flops: f64,
}

/// Points of each series, by its name.
type Series = BTreeMap<String, Vec<(f64, f64)>>;

impl Figures {
    /// Counts a row in.
    pub fn add(&mut self, row: &Row, us: f64) {
        self.times.insert(row.work.clone(), us);
        let timed = |mark: &Mark| {
            let flops = row.flops;
            (mark.clone(), Timed { us, flops })
        };
        self.points.extend(row.marks.iter().map(timed));
    }

    /// Draws each figure that has points into `folder`, and tells the files.
    pub fn draw(&self, folder: &Path, device: &str) -> Result<Vec<PathBuf>> {
        let mut figures: BTreeMap<&str, Series> = BTreeMap::new();
        for (mark, timed) in &self.points {
            let y = match &mark.y {
                Measure::Throughput => Some(timed.flops / timed.us / 1e6),
                // Nothing to compare with if the other row was not timed.
                Measure::SpeedUp(than) => self.times.get(than).map(|us| us / timed.us),
            };
            if let Some(y) = y {
                let series = figures.entry(mark.figure).or_default();
                let points = series.entry(mark.series.clone()).or_default();
                points.push((mark.x, y));
            }
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut drawn = Vec::new();
        for (name, mut series) in figures {
            for points in series.values_mut() {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
            }
            let path = folder.join(format!("{name}.svg"));
            figure(name, &series, &path, device).map_err(|e| anyhow!("{}: {e}", path.display()))?;
            drawn.push(path);
        }
        Ok(drawn)
    }
}

/// Both axes are logarithmic. Speed-ups have the line that a perfect kernel would be on.
fn figure(
    name: &str,
    series: &Series,
    path: &Path,
    device: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let (title, x_name, y_name) = match name {
        "mlp-speedup" => (
            "Sparse over dense MLP, one token",
            "1 / share read",
            "times faster",
        ),
        "sparse-speedup" => (
            "Block-sparse over dense attention",
            "1 / density",
            "times faster",
        ),
        _ => ("Attention, forward", "keys", "TFLOP/s"),
    };
    let ideal = name == "sparse-speedup";
    let points = || series.values().flatten().copied();
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        low / 1.3..high * 1.3
    };
    let x = span(&mut points().map(|p| p.0));
    let y = span(&mut points().map(|p| p.1).chain(ideal.then_some(x.end / 1.3)));
    let area = SVGBackend::new(path, (860, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{title} ({device})"), ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(x.clone().log_scale(), y.log_scale())?;
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| {
            if *v < 10.0 {
                format!("{v:.1}")
            } else {
                format!("{v:.0}")
            }
        })
        .label_style(("sans-serif", 13))
        .draw()?;
    if ideal {
        let line = [(x.start, x.start), (x.end, x.end)];
        let drawn = chart.draw_series(LineSeries::new(line, BLACK.mix(0.35)))?;
        let key = |(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.mix(0.35));
        drawn.label("as much faster as there is less").legend(key);
    }
    for (n, (label, points)) in series.iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
        chart.draw_series(line)?.label(label).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}
