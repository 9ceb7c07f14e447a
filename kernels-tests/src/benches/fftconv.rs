//! Long convolutions: those of `torch_baseline.py`, and FlashFFTConv's published ones (batch 64, 768 channels, gated, f16).

use flashwave::DType::{F16, F32};
use flashwave::kernels::fftconv::{ConvArgs, FftConv, Filter, Tuning};
use flashwave::{Capabilities, DType, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// Whether u and y are gated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gates {
    None,
    Both,
}

#[derive(Clone, Copy)]
struct Problem {
    dtype: DType,
    batch: usize,
    channels: usize,
    length: usize,
    gates: Gates,
    /// Runs that the problem is split into: no tensor is over a binding's limit.
    parts: usize,
}

const fn problem(
    dtype: DType,
    gates: Gates,
    batch: usize,
    channels: usize,
    length: usize,
    parts: usize,
) -> Problem {
    Problem {
        dtype,
        batch,
        channels,
        length,
        gates,
        parts,
    }
}

const FULL: [Problem; 16] = [
    problem(F16, Gates::Both, 64, 768, 1024, 1),
    problem(F16, Gates::Both, 64, 768, 4096, 1),
    problem(F16, Gates::Both, 64, 768, 8192, 1),
    problem(F16, Gates::Both, 64, 768, 32768, 2),
    problem(F32, Gates::None, 64, 768, 1024, 1),
    problem(F32, Gates::None, 64, 768, 4096, 1),
    problem(F32, Gates::None, 64, 768, 8192, 1),
    problem(F32, Gates::None, 16, 768, 8192, 1),
    problem(F32, Gates::None, 16, 768, 32768, 1),
    problem(F32, Gates::None, 1, 768, 1_048_576, 4),
    problem(F16, Gates::Both, 64, 768, 16384, 1),
    problem(F32, Gates::Both, 64, 768, 1024, 1),
    problem(F32, Gates::Both, 64, 768, 4096, 1),
    problem(F32, Gates::Both, 16, 768, 8192, 1),
    problem(F32, Gates::Both, 16, 768, 32768, 1),
    problem(F32, Gates::Both, 1, 768, 1_048_576, 4),
];
const SMALL: [Problem; 2] = [
    problem(F16, Gates::Both, 2, 8, 1024, 1),
    problem(F32, Gates::None, 2, 8, 1024, 1),
];

fn problems(scale: Scale) -> &'static [Problem] {
    scale.pick(&FULL, &SMALL)
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    problems(scale)
        .iter()
        .map(|&p| row(caps, p, None))
        .collect()
}

/// Every tuning of the problems that one kernel does.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let each = problems(scale).iter().flat_map(|&p| {
        let tunings = Tuning::candidates(caps, p.length.next_power_of_two());
        tunings.into_iter().map(move |t| (p, t))
    });
    each.map(|(p, tuning)| row(caps, p, Some(tuning))).collect()
}

fn row(caps: &Capabilities, problem: Problem, tuning: Option<Tuning>) -> Row {
    let Problem {
        dtype,
        batch,
        channels,
        length,
        gates,
        parts,
    } = problem;
    let (name, moved) = match gates {
        Gates::None => ("", 2),
        Gates::Both => ("gated ", 4),
    };
    let work = format!("fftconv {name}causal {dtype} b{batch} h{channels} l{length}");
    // Inputs, filter and output once.
    let bytes = (moved * batch * channels * length * dtype.size() + channels * length * 4) as f64;
    let count = sets(caps, bytes);
    Row::memory("fftconv", work, bytes, move |ctx| {
        // Long sequences are split over channels, many over the batch.
        let (batch, channels) = if batch >= parts {
            (batch / parts, channels)
        } else {
            (batch, channels / parts)
        };
        let shape = [batch, channels, length];
        let sets: Vec<[Tensor; 4]> = (0..count)
            .map(|i| {
                let u = random(ctx, dtype, shape, 3 * i)?;
                let y = Tensor::empty(ctx, dtype, shape)?;
                Ok(match gates {
                    Gates::None => [u.clone(), u.clone(), u, y],
                    Gates::Both => [
                        u,
                        random(ctx, dtype, shape, 3 * i + 1)?,
                        random(ctx, dtype, shape, 3 * i + 2)?,
                        y,
                    ],
                })
            })
            .collect::<Result<_>>()?;
        let k = random(ctx, F32, [channels, length], 99)?;
        let conv = match dtype {
            F16 => FftConv::causal().half(),
            _ => FftConv::causal(),
        };
        let filter: Filter = match tuning {
            None => conv.filter(&k, None, length)?,
            Some(tuning) => conv.filter_with(&k, None, length, tuning)?,
        };
        let like = sets[0][0].layout();
        let steps = filter
            .plan()
            .convolution(ctx.capabilities(), &ConvArgs::new(like, like))?;
        let label: Vec<String> = steps
            .iter()
            .take(3)
            .map(|s| s.launch.recipe.to_string())
            .collect();
        Ok(Prepared::new(label.join("; "), move |pass, run| {
            let [u, v, w, y] = &sets[run % sets.len()];
            let args = ConvArgs {
                u,
                gate_in: (gates == Gates::Both).then_some(v),
                gate_out: (gates == Gates::Both).then_some(w),
                y,
            };
            (0..parts).try_for_each(|_| filter.run(pass, &args))
        }))
    })
}
