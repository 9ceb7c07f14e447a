//! Long convolutions: those of `torch_baseline.py`, FlashFFTConv's published ones (batch 64, 768 channels, gated, f16), filters shorter
//! than their sequences, filters that are zero at most frequencies, and a sequence of 2.3 million.
//!
//! Short filters' work is counted in butterflies, and beside each stands the convolution of whole sequences that has as many transforms
//! of the same points: what that work costs where nothing overlaps. Work of patterns of frequencies is counted in products of matrices.

use flashwave::DType::{F16, F32};
use flashwave::kernels::fftconv::{
    Boundary, ConvArgs, FftConv, Filter, FilterPlan, Pattern, Tuning,
};
use flashwave::{Capabilities, DType, Layout, Pass, Result, Tensor};

use super::{Kept, Prepared, Row, Scale, random, sets};

/// Whether u and y are gated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gates {
    None,
    Both,
}

#[derive(Clone, Copy)]
struct Problem {
    boundary: Boundary,
    dtype: DType,
    batch: usize,
    channels: usize,
    length: usize,
    gates: Gates,
    /// Runs that the problem is split into: no tensor is over a binding's limit.
    parts: usize,
    taps: usize,
    pattern: Pattern,
}

impl Problem {
    /// With a filter of so many taps.
    const fn partial(self, taps: usize) -> Self {
        Self { taps, ..self }
    }

    /// With a filter that is zero at most frequencies.
    const fn sparse(self, kept: u32) -> Self {
        let pattern = Pattern::Kept(kept);
        Self { pattern, ..self }
    }

    fn conv(&self) -> FftConv {
        let conv = FftConv::new(self.boundary).sparse(self.pattern);
        match self.dtype {
            F16 => conv.half(),
            _ => conv,
        }
    }

    /// What it is planned as, if the device can do it.
    fn plan(&self, caps: &Capabilities) -> Option<FilterPlan> {
        let k = Layout::contiguous(F32, [self.channels, self.taps]).ok()?;
        FilterPlan::new(caps, self.conv(), &k, self.length, None).ok()
    }

    /// The problem of which this one does a part.
    fn whole(&self) -> Self {
        Self {
            taps: self.length,
            pattern: Pattern::All,
            ..*self
        }
    }

    /// How much of the whole it does.
    fn kept(&self, caps: &Capabilities) -> Option<Kept> {
        let whole = self.whole();
        let work = |problem: &Self| -> Option<(f64, &'static str)> {
            let plan = problem.plan(caps)?;
            Some(match plan.tuning() {
                Tuning::Monarch(t) => (t.products() as f64, "products"),
                t => {
                    let points = t.points();
                    let each = (points * points.ilog2() as usize) as f64;
                    (plan.transforms(problem.length) as f64 * each, "butterflies")
                }
            })
        };
        if self.taps == self.length && self.pattern == Pattern::All {
            return None;
        }
        let ((part, unit), (all, of)) = (work(self)?, work(&whole)?);
        (unit == of).then(|| Kept {
            of: whole.name(),
            share: part / all,
            unit,
        })
    }

    /// The convolution of whole sequences with as many transforms of as many points as this one's filter takes: two sequences each.
    fn alike(&self, caps: &Capabilities) -> Option<Self> {
        let plan = self.plan(caps)?;
        let length = plan.tuning().points();
        let batch = 2 * self.batch * plan.transforms(self.length);
        // No tensor over 2 GiB.
        let bytes = batch * self.channels * length * self.dtype.size();
        (self.taps < self.length).then(|| Self {
            boundary: Boundary::Circular,
            batch,
            length,
            taps: length,
            parts: bytes.div_ceil(1 << 31).next_power_of_two(),
            ..*self
        })
    }

    fn name(&self) -> String {
        let Self {
            boundary,
            dtype,
            batch,
            channels,
            length,
            ..
        } = self;
        let gated = match self.gates {
            Gates::None => "",
            Gates::Both => "gated ",
        };
        let taps = match self.taps {
            taps if taps < *length => format!(" taps {taps}"),
            _ => String::new(),
        };
        let kept = match self.pattern {
            Pattern::Kept(kept) => format!(" kept {kept}"),
            Pattern::All => String::new(),
        };
        let boundary = match boundary {
            Boundary::Causal => "causal",
            Boundary::Circular => "circular",
        };
        format!("fftconv {gated}{boundary} {dtype} b{batch} h{channels} l{length}{taps}{kept}")
    }
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
        boundary: Boundary::Causal,
        dtype,
        batch,
        channels,
        length,
        gates,
        parts,
        taps: length,
        pattern: Pattern::All,
    }
}

const PUBLISHED_32K: Problem = problem(F16, Gates::Both, 64, 768, 32768, 2);
const MILLION: Problem = problem(F32, Gates::None, 1, 768, 1_048_576, 4);

const FULL: [Problem; 36] = [
    problem(F16, Gates::Both, 64, 768, 1024, 1),
    problem(F16, Gates::Both, 64, 768, 4096, 1),
    problem(F16, Gates::Both, 64, 768, 8192, 1),
    PUBLISHED_32K,
    problem(F16, Gates::None, 64, 768, 1024, 1),
    problem(F16, Gates::None, 64, 768, 4096, 1),
    problem(F16, Gates::None, 64, 768, 8192, 1),
    problem(F16, Gates::None, 16, 768, 8192, 1),
    problem(F16, Gates::None, 16, 768, 32768, 1),
    problem(F16, Gates::None, 1, 768, 1_048_576, 4),
    problem(F32, Gates::None, 64, 768, 1024, 1),
    problem(F32, Gates::None, 64, 768, 4096, 1),
    problem(F32, Gates::None, 64, 768, 8192, 1),
    problem(F32, Gates::None, 16, 768, 8192, 1),
    problem(F32, Gates::None, 16, 768, 32768, 1),
    MILLION,
    problem(F16, Gates::Both, 64, 768, 16384, 1),
    problem(F32, Gates::Both, 64, 768, 1024, 1),
    problem(F32, Gates::Both, 64, 768, 4096, 1),
    problem(F32, Gates::Both, 16, 768, 8192, 1),
    problem(F32, Gates::Both, 16, 768, 32768, 1),
    problem(F32, Gates::Both, 1, 768, 1_048_576, 4),
    PUBLISHED_32K.sparse(4),
    PUBLISHED_32K.sparse(2),
    PUBLISHED_32K.sparse(1),
    problem(F16, Gates::Both, 64, 768, 8192, 1).sparse(1),
    problem(F16, Gates::Both, 64, 768, 4096, 1).sparse(2),
    problem(F16, Gates::None, 64, 768, 8192, 1).sparse(1),
    problem(F16, Gates::None, 64, 768, 4096, 1).sparse(2),
    problem(F16, Gates::None, 64, 768, 4096, 1).sparse(1),
    problem(F16, Gates::Both, 64, 768, 4096, 1).sparse(1),
    MILLION.partial(131_072),
    MILLION.partial(32768),
    MILLION.partial(4096),
    MILLION.partial(256),
    problem(F16, Gates::Both, 1, 64, 2_300_000, 1),
];
const SMALL: [Problem; 3] = [
    problem(F16, Gates::Both, 2, 8, 1024, 1),
    problem(F32, Gates::None, 2, 8, 1024, 1).partial(16),
    problem(F32, Gates::None, 2, 8, 1024, 1),
];

fn problems(scale: Scale) -> &'static [Problem] {
    scale.pick(&FULL, &SMALL)
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let each = problems(scale).iter().flat_map(|p| {
        let alike = p.alike(caps);
        [*p].into_iter().chain(alike)
    });
    each.map(|p| row(caps, p, None)).collect()
}

/// Every tuning of the problems that one kernel does.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let each = problems(scale).iter().flat_map(|&p| {
        let points = p.length.next_power_of_two();
        let tunings = Tuning::candidates(caps, p.conv().arithmetic, points);
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
        taps,
        ..
    } = problem;
    let moved = match gates {
        Gates::None => 2,
        Gates::Both => 4,
    };
    // Inputs, filter and output once.
    let bytes = (moved * batch * channels * length * dtype.size() + channels * taps * 4) as f64;
    let count = sets(caps, bytes);
    let row = Row::memory("fftconv", problem.name(), bytes, move |ctx| {
        ctx.trim();
        let before = ctx.memory_bytes();
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
        let k = random(ctx, F32, [channels, taps], 99)?;
        let conv = problem.conv();
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
        let label = match tuning {
            None => label.join("; "),
            Some(tuning) => format!("{tuning:?}"),
        };
        // Scratch memory as well.
        let convolve = move |pass: &mut Pass<'_>, run: usize| {
            let [u, v, w, y] = &sets[run % sets.len()];
            let args = ConvArgs {
                u,
                gate_in: (gates == Gates::Both).then_some(v),
                gate_out: (gates == Gates::Both).then_some(w),
                y,
            };
            (0..parts).try_for_each(|_| filter.run(pass, &args))
        };
        ctx.record(|pass| convolve(pass, 0))?;
        let held = (ctx.memory_bytes() - before) as f64 / f64::from(1 << 30);
        Ok(Prepared::new(format!("{held:.2} GiB; {label}"), convolve))
    });
    Row {
        kept: problem.kept(caps),
        ..row
    }
}
