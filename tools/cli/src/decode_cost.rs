//! `flashwave bench hyena --plot FOLDER`: what tokens of a Hyena cost along a text, as a table and a plot.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use flashwave::Context;
use flashwave::kernels::ceilings::Ceilings;
use kernels_tests::benches::hyena::{DecodeCost, decode_costs};
use plotters::prelude::*;

/// Points of a curve.
const POINTS: usize = 32;

/// Measures, prints and plots.
pub fn run(out: &mut impl Write, ctx: &Context, ceilings: &Ceilings, file: &Path) -> Result<()> {
    let costs = decode_costs(ctx)?;
    let Some(first) = costs.first() else {
        return Ok(());
    };
    let bound = first.weights as f64 / ceilings.read * 1e6;
    writeln!(
        out,
        "\nHyena token by token: {:.2} GB of weights, {bound:.0} us to read them; {:.2} GB kept for {} positions",
        first.weights as f64 / 1e9,
        first.session as f64 / 1e9,
        first.tokens.len() + 1,
    )?;
    write!(out, "{:>9}", "up to")?;
    for cost in &costs {
        write!(out, " {:>22}", name(cost))?;
    }
    writeln!(out)?;
    let curves: Vec<_> = costs.iter().map(|c| c.means(POINTS)).collect();
    for (i, (last, _)) in curves[0].iter().enumerate() {
        write!(out, "{last:>9}")?;
        for curve in &curves {
            let us = curve.get(i).map_or(0.0, |p| p.1);
            write!(out, " {:>10.1} us {:>7.2}x", us, us / bound)?;
        }
        writeln!(out)?;
    }
    for cost in &costs {
        writeln!(out, "worst token, {}: {:.1} us", name(cost), cost.worst())?;
    }
    plot(ctx, &costs, bound, file)
}

fn name(cost: &DecodeCost) -> String {
    if cost.relaxed.block > cost.tokens.len() {
        "sum over the text".into()
    } else {
        format!("relaxed, blocks of {}", cost.relaxed.block)
    }
}

fn plot(ctx: &Context, costs: &[DecodeCost], bound: f64, file: &Path) -> Result<()> {
    let curves: Vec<_> = costs.iter().map(|c| c.means(POINTS)).collect();
    let points = || curves.iter().flatten();
    let right = points().map(|p| p.0).max().unwrap_or(1);
    let top = points().map(|p| p.1).fold(bound, f64::max) * 1.15;
    let area = SVGBackend::new(file, (900, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let caps = ctx.capabilities();
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("Hyena decode, {}", caps.name), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("position")
        .y_desc("us a token")
        .draw()?;
    let limit = vec![(0, bound), (right, bound)];
    chart
        .draw_series(LineSeries::new(limit, BLACK))?
        .label("weights at the measured read bandwidth")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK));
    for (i, (cost, curve)) in costs.iter().zip(curves).enumerate() {
        let color = [BLUE, RED, GREEN][i % 3];
        chart
            .draw_series(LineSeries::new(curve, color))?
            .label(name(cost))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart
        .configure_series_labels()
        .border_style(BLACK)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}
