//! Forecasts a signal in closed loop with a SpaceTime layer and plots it:
//!
//! ```sh
//! cargo run --release --example forecast -- forecast.svg
//! ```
//!
//! The signal is three waves and noise. A linear predictor of the next value from the last [`ORDER`] is fitted to the known
//! part by least squares on the host; as a state space it is a companion matrix that shifts (a = 0), an input that enters
//! at the first place, and the predictor's weights as the output. The layer then runs on the GPU: over the known part as
//! a convolution, which gives every one-step prediction, and beyond it as a recurrence that feeds on its own output.

use flashwave::model::SpaceTime;
use flashwave::reference::spacetime::Companion;
use flashwave::{Context, Tensor};
use plotters::prelude::*;
use rand::{Rng, SeedableRng};

type Anything<T> = Result<T, Box<dyn std::error::Error>>;

const KNOWN: usize = 600;
const AHEAD: usize = 200;
const ORDER: usize = 48;
/// Standard deviation of the noise.
const NOISE: f64 = 0.05;

fn main() -> Anything<()> {
    let file = std::env::args().nth(1).unwrap_or("forecast.svg".into());
    let (clean, noisy) = signal();
    let known = &noisy[..KNOWN];
    let mut first = vec![0.0; ORDER];
    first[0] = 1.0;
    let system = Companion {
        a: vec![0.0; ORDER],
        b: first,
        c: fit(known)?,
        d: 0.0,
    };

    let ctx = Context::new()?;
    let layer = SpaceTime::new(&ctx, vec![system])?;
    let inputs: Vec<f32> = known.iter().map(|&x| x as f32).collect();
    let inputs = Tensor::from_slice(&ctx, &inputs, [1, KNOWN])?;
    // Output k is the prediction of value k + 1.
    let predicted = layer.forward(&inputs, &layer.filter(KNOWN)?)?;
    let predicted = predicted.to_vec::<f32>()?;
    let state = layer.state()?;
    let stepped = layer.step(&state, &inputs)?.to_vec::<f32>()?;
    let apart = predicted.iter().zip(&stepped).map(|(a, b)| (a - b).abs());
    let apart = apart.fold(0.0, f32::max);
    let next = Tensor::from_slice(&ctx, &stepped[KNOWN - 1..], [1, 1])?;
    let mut forecast = vec![stepped[KNOWN - 1]];
    forecast.extend(layer.forecast(&state, &next, AHEAD - 1)?.to_vec::<f32>()?);

    let truth = &clean[KNOWN..];
    let rms = |errors: &mut dyn Iterator<Item = f64>, n: usize| {
        (errors.map(|e| e * e).sum::<f64>() / n as f64).sqrt()
    };
    let mut one_step = (ORDER..KNOWN).map(|k| f64::from(predicted[k - 1]) - noisy[k]);
    let mut ahead = forecast.iter().zip(truth).map(|(&f, &t)| f64::from(f) - t);
    let mut constant = truth.iter().map(|t| noisy[KNOWN - 1] - t);
    println!("adapter                            {}", ctx.capabilities());
    println!("convolution against recurrence     {apart:.1e} at most");
    println!("noise, standard deviation          {NOISE:.3}");
    println!(
        "one step ahead, rms error          {:.3}",
        rms(&mut one_step, KNOWN - ORDER)
    );
    println!(
        "{AHEAD} steps in closed loop, rms error  {:.3}",
        rms(&mut ahead, AHEAD)
    );
    println!(
        "the last value held, rms error     {:.3}",
        rms(&mut constant, AHEAD)
    );
    plot(&file, known, truth, &forecast)?;
    println!("plot                               {file}");
    Ok(())
}

/// Three waves, without and with noise.
fn signal() -> (Vec<f64>, Vec<f64>) {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let wave = |k: usize, period: f64| (k as f64 * std::f64::consts::TAU / period).sin();
    let clean = |k| wave(k, 73.0) + 0.6 * wave(k, 31.0) + 0.3 * wave(k, 11.7);
    let clean: Vec<f64> = (0..KNOWN + AHEAD).map(clean).collect();
    // The sum of twelve uniform numbers is close to normal.
    let mut noise = || (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
    let noisy = clean.iter().map(|x| x + NOISE * noise()).collect();
    (clean, noisy)
}

/// Weights that predict a value from the [`ORDER`] before it, the nearest first, by least squares (normal equations with
/// a small ridge, solved by Cholesky's decomposition).
fn fit(known: &[f64]) -> Anything<Vec<f64>> {
    let n = ORDER;
    let (mut gram, mut right) = (vec![vec![0.0; n]; n], vec![0.0; n]);
    for k in n..known.len() {
        for i in 0..n {
            right[i] += known[k - 1 - i] * known[k];
            for j in 0..=i {
                gram[i][j] += known[k - 1 - i] * known[k - 1 - j];
            }
        }
    }
    for i in 0..n {
        gram[i][i] += NOISE * NOISE;
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| gram[i][k] * gram[j][k]).sum();
            let rest = gram[i][j] - sum;
            gram[i][j] = match (i == j, rest > 0.0) {
                (false, _) => rest / gram[j][j],
                (true, true) => rest.sqrt(),
                (true, false) => return Err("the signal does not determine a predictor".into()),
            };
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| gram[i][k] * right[k]).sum();
        right[i] = (right[i] - sum) / gram[i][i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| gram[k][i] * right[k]).sum();
        right[i] = (right[i] - sum) / gram[i][i];
    }
    Ok(right)
}

fn plot(file: &str, known: &[f64], truth: &[f64], forecast: &[f32]) -> Anything<()> {
    let area = SVGBackend::new(file, (1000, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let from = KNOWN - 250;
    let mut chart = ChartBuilder::on(&area)
        .caption("SpaceTime, closed loop", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(from..KNOWN + AHEAD, -2.4..2.4)?;
    chart.configure_mesh().x_desc("step").draw()?;
    let known = (from..KNOWN).map(|k| (k, known[k]));
    let truth = (KNOWN..).zip(truth.iter().copied());
    let forecast = (KNOWN..).zip(forecast.iter().map(|&y| f64::from(y)));
    let gray = RGBColor(130, 130, 130);
    for (name, color, points) in [
        ("known", BLACK, known.collect::<Vec<_>>()),
        ("what came, without noise", gray, truth.collect()),
        ("forecast", RED, forecast.collect()),
    ] {
        chart
            .draw_series(LineSeries::new(points, color))?
            .label(name)
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
