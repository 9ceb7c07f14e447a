//! Figures of benches: speed-up against density, TFLOP/s against length.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use kernels_tests::benches::{Mark, Measure, Row};
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
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

/// Dark enough for thin lines on white.
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 140, 44),
    RGBColor(148, 103, 189),
    RGBColor(200, 100, 0),
    RGBColor(90, 90, 90),
];

/// What a figure's axes are.
struct Axes {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// Whether the line y = x, of a perfect kernel, is shown; y is then logarithmic as x is, else it begins at zero.
    ideal: bool,
}

impl Axes {
    fn of(figure: &str) -> Self {
        match figure {
            "sparse-speedup" => Self {
                title: "Block-sparse over dense attention",
                x: "1 / density",
                y: "times faster than dense",
                ideal: true,
            },
            "mlp-speedup" => Self {
                title: "Sparse over dense MLP, one token",
                x: "1 / share read",
                y: "times faster than dense",
                ideal: false,
            },
            _ => Self {
                title: "Attention, forward",
                x: "keys",
                y: "TFLOP/s",
                ideal: false,
            },
        }
    }
}

fn figure(
    name: &str,
    series: &Series,
    path: &Path,
    device: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let axes = Axes::of(name);
    let points = || series.values().flatten().copied();
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)))
    };
    let (left, right) = span(&mut points().map(|p| p.0));
    let (low, high) = span(&mut points().map(|p| p.1));
    let x = left / 1.2..right * 1.2;
    let area = SVGBackend::new(path, (860, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder
        .caption(format!("{}, {device}", axes.title), ("sans-serif", 24))
        .margin(16)
        .margin_right(28)
        .x_label_area_size(48)
        .y_label_area_size(64);
    let powers = |from: f64, to: f64| powers_of_two(from..to);
    let x_axis = x
        .clone()
        .log_scale()
        .with_key_points(powers(x.start, x.end));
    if axes.ideal {
        let y = low / 1.2..high.max(right) * 1.2;
        let ticks = powers(y.start, y.end);
        let chart = builder.build_cartesian_2d(x_axis, y.log_scale().with_key_points(ticks))?;
        let ideal = Some(("1 / density", [(x.start, x.start), (x.end, x.end)]));
        return draw(chart, &axes, series, ideal);
    }
    draw(
        builder.build_cartesian_2d(x_axis, 0.0..high * 1.35)?,
        &axes,
        series,
        None,
    )
}

/// The powers of two within.
fn powers_of_two(range: Range<f64>) -> Vec<f64> {
    let exponents = range.start.log2().ceil() as i32..=range.end.log2().floor() as i32;
    exponents.map(|e| 2f64.powi(e)).collect()
}

/// A line's sign in the legend.
fn key(color: RGBAColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
}

fn draw<'a, X, Y>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    axes: &Axes,
    series: &Series,
    ideal: Option<(&str, [(f64, f64); 2])>,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&|v| match *v {
            v if v >= 1024.0 => format!("{:.0}K", v / 1024.0),
            v => format!("{v:.0}"),
        })
        .y_label_formatter(&|v| format!("{v:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 16))
        .draw()?;
    if let Some((label, line)) = ideal {
        let color = BLACK.mix(0.4);
        let drawn = chart.draw_series(LineSeries::new(line, color))?;
        drawn.label(label).legend(key(color));
    }
    for ((label, points), color) in series.iter().zip(COLORS.iter().cycle()) {
        let color = color.to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4);
        chart.draw_series(line)?.label(label).legend(key(color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 16))
        .draw()?;
    chart.plotting_area().present()?;
    Ok(())
}
