//! Long convolutions: lengths, gates, types, batches, boundaries, ragged lengths, views, tunings.
//!
//! Naive arithmetic is the textbook's radix-2 transform in f32 with the padding stored, as other libraries do it, or the farther of
//! that and: the sum term by term up to 2048 elements; the transform padded once more above; of circular convolutions the
//! transform that two rows share. Where the kernel's arithmetic is f16, the textbook's transform keeps f16 too, from level to level,
//! with no limit on exponents. Naive sums of long filters would take hours. The oracle is the sum in f64 up to
//! 2048 elements, the transform in f64 above.

use flashwave::DType::{BF16, F16, F32};
use flashwave::capabilities::DeviceClass;
use flashwave::context::ShaderChecks;
use flashwave::kernels::attention::MatrixUnits;
use flashwave::kernels::fftconv::{
    Arithmetic, Boundary, ConvArgs, ConvStream, FftConv, FilterPlan, FusedTuning, Hold, LongTuning,
    Meet, MonarchTuning, Passes, Pattern, Planes, Tuning, accumulate,
};
use flashwave::reference::fft::dft;
use flashwave::reference::fftconv::{
    by_fft, by_fft_of, by_fft_stored, by_quarters, convolve, gated,
};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use super::fftconv_backward;
use crate::inputs::{Random, poisoned, random, round, widen};
use crate::tolerance::{Outcome, Ulps, check, farther};
use crate::{Case, Failure};

/// The right-angle form multiplies by a unit root more than transforms of padded sequences do, which costs up to sqrt(5)
/// halves of an ulp (Brent, Percival and Zimmermann, Math. Comp. 76, 2007).
const RIGHT_ANGLE: Ulps = Ulps(2.236);

type Convolve<'a> = dyn Fn(&[f32], &[f32]) -> Vec<f32> + 'a;

/// Lengths up to this one have the sum itself for an oracle.
const BY_SUM: usize = 2048;

/// What a convolution got and gave, row after row.
#[derive(Clone, Copy)]
struct Values<'a> {
    u: &'a [f32],
    k: &'a [f32],
    gates: &'a [Option<Vec<f32>>; 2],
    d: Option<&'a [f32]>,
    out: &'a [f32],
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    boundary: Boundary,
    batch: usize,
    channels: usize,
    length: usize,
    /// What the filter is planned for.
    planned: usize,
    taps: usize,
    /// u, k, gates, y.
    types: [DType; 4],
    gates: [bool; 2],
    skip: bool,
    /// Elements of a row of the tensors that are not the sequence's.
    margin: usize,
    tuning: Option<Tuning>,
    arithmetic: Arithmetic,
    pattern: Pattern,
}

/// Runs the three side by side, where there are threads.
fn together<A: Send, B: Send, C: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
    c: impl FnOnce() -> C + Send,
) -> (A, B, C) {
    #[cfg(target_arch = "wasm32")]
    return (a(), b(), c());
    #[cfg(not(target_arch = "wasm32"))]
    std::thread::scope(|scope| {
        let (b, c) = (scope.spawn(b), scope.spawn(c));
        let joined = "a reference that panics fails its case";
        (a(), b.join().expect(joined), c.join().expect(joined))
    })
}

/// Eleven significant bits, as f16 has.
fn eleven_bits(x: f32) -> f32 {
    let wide = f64::from(x);
    let part = wide * 4_398_046_511_105.0;
    (part - (part - wide)) as f32
}

impl Setup {
    fn new(boundary: Boundary, batch: usize, channels: usize, length: usize) -> Self {
        Self {
            boundary,
            batch,
            channels,
            length,
            planned: length,
            taps: length,
            types: [F32; 4],
            gates: [false; 2],
            skip: false,
            margin: 0,
            tuning: None,
            arithmetic: Arithmetic::Full,
            pattern: Pattern::All,
        }
    }

    /// The kernel for matrix units, gated.
    fn half(batch: usize, length: usize) -> Self {
        Self {
            arithmetic: Arithmetic::Half,
            ..Self::new(Boundary::Causal, batch, 2, length).gated([F16, F32, F16, F16])
        }
    }

    /// What distinguishes setups of a grid.
    fn name(&self) -> String {
        let Self {
            boundary,
            batch,
            channels,
            length,
            ..
        } = self;
        let gated = if self.gates[0] { "gated " } else { "" };
        let arithmetic = self.arithmetic;
        format!("{gated}{boundary:?} b{batch} h{channels} l{length} {arithmetic:?}")
    }

    fn gated(self, types: [DType; 4]) -> Self {
        Self {
            gates: [true; 2],
            skip: true,
            types,
            ..self
        }
    }

    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let Self {
            boundary,
            batch,
            channels,
            length,
            taps,
            types: [tu, tk, tg, ty],
            ..
        } = *self;
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let width = length + self.margin;
        let n = batch * channels * width;
        let u = random.normals(n, tu);
        let gates = self.gates.map(|on| on.then(|| random.normals(n, tg)));
        // As filters of such models are: decaying.
        let mut k = random.normals(channels * taps, F32);
        for (i, k) in k.iter_mut().enumerate() {
            *k = round(*k * (-3.0 * (i % taps) as f32 / taps as f32).exp(), tk);
        }
        let d = self.skip.then(|| random.normals(channels, F32));

        let shape = [batch, channels, width];
        let view = |t: &Tensor| t.narrow(2, 0..length);
        let u_in = Tensor::from_f32(ctx, tu, &u, shape)?;
        let gates_in = [0, 1].map(|i| {
            gates[i]
                .as_ref()
                .map(|g| Tensor::from_f32(ctx, tg, g, shape))
        });
        let [v, w] = gates_in.map(Option::transpose);
        let (v, w) = (v?, w?);
        let (v_in, w_in) = (
            v.as_ref().map(view).transpose()?,
            w.as_ref().map(view).transpose()?,
        );
        let y = poisoned(ctx, ty, shape)?;
        let k_in = Tensor::from_f32(ctx, tk, &k, [channels, taps])?;
        let d_in = d
            .as_ref()
            .map(|d| Tensor::from_slice(ctx, d, [channels]))
            .transpose()?;
        let conv = FftConv {
            boundary,
            arithmetic: self.arithmetic,
            pattern: self.pattern,
        };
        let filter = match self.tuning {
            None => conv.filter(&k_in, d_in.as_ref(), self.planned)?,
            Some(tuning) => conv.filter_with(&k_in, d_in.as_ref(), self.planned, tuning)?,
        };
        let args = ConvArgs {
            u: &view(&u_in)?,
            gate_in: v_in.as_ref(),
            gate_out: w_in.as_ref(),
            y: &view(&y)?,
        };
        ctx.record(|pass| filter.run(pass, &args))?;
        let found = Values {
            u: &u,
            k: &k,
            gates: &gates,
            d: d.as_deref(),
            out: &y.to_f32_vec()?,
        };
        self.judge(filter.plan().tuning(), found)
    }

    /// Compares what came out of a convolution planned so.
    fn judge(&self, tuning: Tuning, values: Values<'_>) -> Result<Outcome, Failure> {
        let Self {
            boundary,
            batch,
            channels,
            length,
            taps,
            types: [_, _, _, ty],
            ..
        } = *self;
        let Values {
            u,
            k,
            gates,
            d,
            out,
        } = values;
        let width = length + self.margin;
        let points = tuning.points();
        let half = matches!(tuning, Tuning::Monarch(_));
        let (kept, period) = match tuning {
            Tuning::Monarch(t) => (t.kept as usize, t.period() as usize),
            _ => (1, 1),
        };
        let odd = boundary == Boundary::Circular && !length.is_power_of_two();
        let slack = match boundary {
            Boundary::Circular if !odd => Ulps(0.0),
            Boundary::Circular | Boundary::Causal => RIGHT_ANGLE,
        };
        // The gated input of the batch row that shares a transform with this one.
        let partner = |row: usize| -> Vec<f32> {
            let other = ((row / channels) ^ 1) * channels + row % channels;
            let from = if other < batch * channels { other } else { row } * width;
            let gate = |i: usize| gates[0].as_ref().map_or(1.0, |g| g[i]);
            (from..from + length).map(|i| u[i] * gate(i)).collect()
        };
        let mut values = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..batch * channels {
            let (from, channel) = (row * width, row % channels);
            let part = |x: &[f32]| x[from..from + length].to_vec();
            let (u, k) = (part(u), &k[channel * taps..][..taps]);
            let g = [0, 1].map(|i| gates[i].as_ref().map(|g| part(g)));
            let d = d.map(|d| d[channel]);
            let wide = g.clone().map(|g| g.map(|g| widen(&g)));
            let oracle = |u: &[f64], k: &[f64]| match length <= BY_SUM {
                _ if kept < period => by_quarters(points, u, k, |i| i % period < kept, |x| x),
                true => convolve(boundary, u, k),
                false => by_fft(boundary, u, k),
            };
            // A circular sum of any length, as the causal one of the sequence after itself.
            let twice = |u: &[f32], k: &[f32]| {
                by_fft(Boundary::Causal, &[u, u].concat(), k)[length..].to_vec()
            };
            let textbook = |u: &[f32], k: &[f32]| -> Vec<f32> {
                match half {
                    _ if kept < period => {
                        by_quarters(points, u, k, |i| i % period < kept, eleven_bits)
                    }
                    true => by_fft_stored(2 * points, [u, &[]], k, eleven_bits),
                    _ if odd => twice(u, k),
                    false => by_fft(boundary, u, k),
                }
            };
            let other = |u: &[f32], k: &[f32]| -> Vec<f32> {
                match boundary {
                    _ if odd => convolve(boundary, u, k),
                    Boundary::Circular => by_fft_of(length, [u, &partner(row)], k),
                    Boundary::Causal if length <= BY_SUM => convolve(boundary, u, k),
                    Boundary::Causal => {
                        by_fft_of(2 * (u.len() + k.len()).next_power_of_two(), [u, &[]], k)
                    }
                }
            };
            // Before the second gate, each on a thread of its own: of a long sequence one takes seconds.
            let before = |conv: &Convolve<'_>| gated(conv, &u, [g[0].as_deref(), None], k, d);
            let (plain_exact, plain, farther_one) = together(
                || {
                    let gate = [wide[0].as_deref(), None];
                    gated(oracle, &widen(&u), gate, &widen(k), d.map(f64::from))
                },
                || before(&textbook),
                || (!half).then(|| before(&other)),
            );
            let exact: Vec<f64> = match &wide[1] {
                Some(gate) => plain_exact.iter().zip(gate).map(|(y, g)| y * g).collect(),
                None => plain_exact.clone(),
            };
            let stored = |plain: &[f32]| -> Vec<f32> {
                let gate = |i: usize| g[1].as_ref().map_or(1.0, |g| g[i]);
                let gated = plain.iter().enumerate().map(|(i, &y)| y * gate(i));
                gated.map(|y| round(y, ty)).collect()
            };
            let transformed = stored(&plain);
            let mut naive = match farther_one {
                Some(other) => farther(&exact, [transformed, stored(&other)]),
                None => transformed,
            };
            if let Some(gate) = &g[1] {
                // A transform's errors are spread evenly over its outputs (each is a sum of all roundings by factors of
                // magnitude one): the largest of a row may meet the row's largest gate.
                let error = plain
                    .iter()
                    .zip(&plain_exact)
                    .fold(0.0f64, |m, (&x, e)| m.max((f64::from(x) - e).abs()));
                let largest = (0..length).max_by(|&a, &b| gate[a].abs().total_cmp(&gate[b].abs()));
                if let Some(at) = largest {
                    let worst = exact[at] + f64::from(gate[at].abs()) * error;
                    naive[at] = farther(&exact[at..=at], [vec![naive[at]], vec![worst as f32]])[0];
                }
            }
            values.0.extend(part(out));
            values.1.extend(exact);
            values.2.extend(naive);
            if let Some(touched) = out[from + length..from + width]
                .iter()
                .position(|y| !y.is_nan())
            {
                return Err(Failure::Wrong(format!(
                    "row {row}: written {touched} elements beyond its end"
                )));
            }
        }
        check(&values.0, &values.1, &values.2, slack)
    }
}

impl Setup {
    /// Runs it with random numbers made on the device, and compares some rows: of the last channel the last two batch rows, of the
    /// first the first two, as two may share a transform. Of memory no more than `limit` bytes.
    fn sampled(&self, ctx: &Context, limit: u64) -> Result<Outcome, Failure> {
        let Self {
            batch,
            channels,
            length,
            taps,
            types: [tu, tk, tg, ty],
            ..
        } = *self;
        let before = ctx.memory_bytes();
        let shape = [batch, channels, length];
        let u = random(ctx, tu, shape, 1)?;
        let gate = |i: usize| self.gates[i].then(|| random(ctx, tg, shape, 2 + i));
        let gates = [gate(0).transpose()?, gate(1).transpose()?];
        let k = random(ctx, tk, [channels, taps], 4)?;
        let d = self.skip.then(|| random(ctx, F32, [channels], 5));
        let d = d.transpose()?;
        let y = Tensor::empty(ctx, ty, shape)?;
        let conv = FftConv {
            boundary: self.boundary,
            arithmetic: self.arithmetic,
            pattern: self.pattern,
        };
        let filter = conv.filter(&k, d.as_ref(), self.planned)?;
        let args = ConvArgs {
            u: &u,
            gate_in: gates[0].as_ref(),
            gate_out: gates[1].as_ref(),
            y: &y,
        };
        ctx.record(|pass| filter.run(pass, &args))?;
        let used = ctx.memory_bytes().saturating_sub(before);
        if used > limit {
            return Err(Failure::Wrong(format!(
                "{used} bytes of memory; allowed: {limit}"
            )));
        }
        let some = 2.min(batch);
        let mut places = vec![(batch.next_multiple_of(2) - 2, channels - 1)];
        // Their oracle takes many seconds.
        if length <= 1 << 17 {
            places.push((0, 0));
        }
        let mut outcome = Outcome::default();
        for (row, channel) in places {
            let rows = row.min(batch - some)..row.min(batch - some) + some;
            let part = |t: &Tensor| -> Result<Vec<f32>, Failure> {
                let mut found = Vec::with_capacity(some * length);
                for row in rows.clone() {
                    let row = t.narrow(0, row..row + 1)?;
                    found.extend(row.narrow(1, channel..channel + 1)?.to_f32_vec()?);
                }
                Ok(found)
            };
            let some_of = |t: &Option<Tensor>| t.as_ref().map(part).transpose();
            let one = |t: &Tensor| -> Result<Vec<f32>, Failure> {
                Ok(t.narrow(0, channel..channel + 1)?.to_f32_vec()?)
            };
            let d = d.as_ref().map(one).transpose()?;
            let values = Values {
                u: &part(&u)?,
                k: &one(&k)?,
                gates: &[some_of(&gates[0])?, some_of(&gates[1])?],
                d: d.as_deref(),
                out: &part(&y)?,
            };
            let those = Self {
                batch: some,
                channels: 1,
                ..*self
            };
            outcome = outcome.and(those.judge(filter.plan().tuning(), values)?);
        }
        Ok(outcome)
    }
}

/// A limit of memory that says nothing.
const ANY: u64 = u64::MAX;

/// The lengths, channels and batches, where a device has room for them.
fn grid() -> Vec<(String, Setup, u64)> {
    let (causal, circular) = (Boundary::Causal, Boundary::Circular);
    let mut setups = vec![
        Setup::new(causal, 1, 111, 1 << 20),
        Setup::new(circular, 2, 64, 1 << 20),
        Setup::new(causal, 1, 64, 1 << 22),
    ];
    for bits in [8, 10, 12, 13, 15, 17] {
        let length = 1 << bits;
        // As many elements as a tensor may have on cards with limits of 2 GiB, twice.
        let room = (1usize << 28) / length;
        for (batch, channels) in [(64, 768), (1, 768), (3, 111)] {
            let batch = batch.min(room / channels);
            let mut push = |setup: Setup| setups.push(Setup { channels, ..setup });
            for boundary in [causal, circular] {
                push(Setup::new(boundary, batch, channels, length));
                push(Setup::new(boundary, batch, channels, length).gated([F16, F32, F16, F16]));
            }
            if (10..=16).contains(&bits) {
                push(Setup::half(batch, length));
            }
        }
    }
    setups.into_iter().map(|s| (s.name(), s, ANY)).collect()
}

/// Sums beyond the range of f16 are infinite, and no others.
fn overflow(ctx: &Context, arithmetic: Arithmetic) -> Result<Outcome, Failure> {
    let length = 1024;
    let mut random = Random::new(Case::seed("overflow"));
    let mut u = random.scaled_normals(length, F16, 100.0);
    for at in [100, 101, 500] {
        u[at] = 60_000.0;
    }
    let mut k = vec![0.0; length];
    k[..3].copy_from_slice(&[1.0, 0.5, -2.0]);
    let u_in = Tensor::from_f32(ctx, F16, &u, [1, 1, length])?;
    let k_in = Tensor::from_slice(ctx, &k, [1, length])?;
    let conv = FftConv {
        arithmetic,
        ..FftConv::causal()
    };
    let out = conv.filter(&k_in, None, length)?.forward(&u_in)?;
    let out = out.to_f32_vec()?;
    let exact = convolve(Boundary::Causal, &widen(&u), &widen(&k));
    // Nothing here is near the limit.
    for (i, (&out, exact)) in out.iter().zip(&exact).enumerate() {
        let fits = exact.abs() < 65_000.0;
        if out.is_finite() != fits
            || out.is_nan()
            || (!fits && out.signum() != exact.signum() as f32)
        {
            return Err(Failure::Wrong(format!(
                "element {i} is {out}, exact {exact}"
            )));
        }
    }
    let arithmetic_naive = |x: f32| match arithmetic {
        Arithmetic::Half => eleven_bits(x),
        Arithmetic::Full => x,
    };
    let naive = by_fft_stored(2 * length, [&u, &[]], &k, arithmetic_naive);
    let naive: Vec<f32> = naive.into_iter().map(|y| round(y, F16)).collect();
    check(&out, &exact, &naive, RIGHT_ANGLE)
}

/// Nothing opens a context of its own there.
#[cfg(target_arch = "wasm32")]
fn bounded(_: usize) -> Result<Outcome, Failure> {
    Ok(Outcome::skipped("a context of its own"))
}

/// A partial convolution keeps memory for its filter, not for its sequence: a spectrum and a few windows of a row.
#[cfg(not(target_arch = "wasm32"))]
fn bounded(taps: usize) -> Result<Outcome, Failure> {
    // Its own context: others' cases run beside this one.
    let ctx = Context::new()?;
    let (batch, channels, chunk) = (2, 4, 4 * taps);
    let k = random(&ctx, F32, [channels, taps], 1)?;
    let shape = [batch, channels, chunk];
    let (u, y) = (
        random(&ctx, F32, shape, 2)?,
        Tensor::empty(&ctx, F32, shape)?,
    );
    let before = ctx.memory_bytes();
    let mut stream = ConvStream::new(&k, None, batch)?;
    let mut used = Vec::new();
    for _ in 0..16 {
        ctx.record(|pass| stream.push(pass, &ConvArgs::new(&u, &y)))?;
        used.push(ctx.memory_bytes() - before);
    }
    // Windows of up to four times the filter (256 at least), four of them a row in two buffers, a spectrum of as many complex
    // numbers, tables, and what the pool rounds sizes up by.
    let window = (8 * taps).max(512) as u64;
    let rows = (batch * channels) as u64;
    let limit = (rows * 2 * 4 * window + (channels as u64 + 8) * window) * 8 + (1 << 20);
    let most = used.iter().copied().max().unwrap_or(0);
    if most > limit || used[1] != used[15] {
        return Err(Failure::Wrong(format!(
            "{used:?} bytes of memory; allowed: {limit}, whatever the length"
        )));
    }
    Ok(Outcome::held(16, most as f64 / limit as f64))
}

/// Two passes over `count` rows of 256 points, three transforms at a time.
fn two_passes(count: usize) -> Tuning {
    let of = |points| {
        FusedTuning::default_for(&Capabilities::webgpu_default(), points).expect("a tuning")
    };
    Tuning::Long(LongTuning {
        columns: FusedTuning {
            radices: [count as u32, 1, 1, 1, 1],
            each: 4 * count as u32,
            vec: 4,
            side: 1,
            ..of(256)
        },
        passes: Passes::Two,
        width: 16,
        rows: FusedTuning { side: 1, ..of(256) },
        scratch: 3 * 8 * 256 * count as u64,
    })
}

/// 8192 points in two parts.
fn two_parts(meet: Meet) -> MonarchTuning {
    MonarchTuning {
        units: MatrixUnits::Device,
        last: 16,
        fold: 2,
        meet,
        rounds: 8,
        hold: Hold::Matrices,
        kept: 2,
        scratch: 1 << 30,
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |group: &str, setup: Setup| {
        let name = format!("{setup:?}");
        cases.push(Case::new("fftconv", group, name, move |ctx| setup.run(ctx)));
    };
    let (causal, circular) = (Boundary::Causal, Boundary::Circular);
    for length in [2, 4, 8, 16, 32, 64, 128, 512, 1024, 4096] {
        // Over few elements naive arithmetic is lucky.
        let channels = if length < 32 { 24 } else { 3 };
        push("causal", Setup::new(causal, 2, channels, length));
        push("circular", Setup::new(circular, 3, channels, length));
    }
    for types in [[F32; 4], [F16, F32, F16, F16], [BF16, F16, F32, BF16]] {
        push("causal gated", Setup::new(causal, 5, 4, 256).gated(types));
        push(
            "circular gated",
            Setup::new(circular, 5, 4, 256).gated(types),
        );
        push(
            "causal gated",
            Setup {
                margin: 3,
                ..Setup::new(causal, 2, 3, 301).gated(types)
            },
        );
        push(
            "causal gated",
            Setup {
                margin: 2,
                taps: 7,
                ..Setup::new(causal, 1, 2, 70).gated(types)
            },
        );
    }
    // 111 channels as the paper tests; more batch rows than a workgroup takes at a time.
    push(
        "many rows",
        Setup::new(causal, 2, 111, 64).gated([F16, F32, F16, F16]),
    );
    push("many rows", Setup::new(causal, 67, 2, 16));
    push("many rows", Setup::new(circular, 67, 2, 16));
    for length in [1, 5, 100, 1000] {
        // A filter as long as the sequence, and one that may be longer.
        let (own, longer) = (Some(length), (length < 1000).then_some(1000));
        for taps in own.into_iter().chain(longer) {
            push(
                "ragged",
                Setup {
                    planned: 1000,
                    taps,
                    ..Setup::new(causal, 2, 2, length)
                },
            );
        }
    }
    let one = |points, planes| FusedTuning {
        planes,
        side: 1,
        ..FusedTuning::default_for(&Capabilities::webgpu_default(), points).expect("a tuning")
    };
    let fused = |t| Some(Tuning::Fused(t));
    for (boundary, length, tuning) in [
        (
            causal,
            1024,
            FusedTuning {
                radices: [8, 8, 16, 1, 1],
                vec: 2,
                ..one(1024, Planes::One)
            },
        ),
        (
            causal,
            512,
            FusedTuning {
                radices: [16, 32, 1, 1, 1],
                each: 32,
                vec: 2,
                rounds: 1,
                ..one(512, Planes::Two)
            },
        ),
        (
            circular,
            256,
            FusedTuning {
                radices: [2, 4, 8, 4, 1],
                each: 8,
                vec: 4,
                side: 2,
                ..one(256, Planes::One)
            },
        ),
        // The second step's invocations in another order.
        (
            causal,
            1024,
            FusedTuning {
                radices: [4, 16, 16, 1, 1],
                ..one(1024, Planes::One)
            },
        ),
    ] {
        push(
            "tunings",
            Setup {
                tuning: fused(tuning),
                ..Setup::new(boundary, 3, 2, length).gated([F16, F32, F16, F16])
            },
        );
    }
    // Three passes, small enough for an exact sum; in one of them, scratch memory for three transforms at a time.
    let long = |columns, width, rows, scratch| {
        Some(Tuning::Long(LongTuning {
            columns: one(columns, Planes::One),
            passes: Passes::Three,
            width,
            rows: one(rows, Planes::Two),
            scratch,
        }))
    };
    for (count, types) in [(2, [F32; 4]), (4, [F16, F32, F16, F16]), (8, [F32; 4])] {
        let length = 256 * count;
        let tuning = Some(two_passes(count));
        for setup in [
            Setup::new(causal, 2, 5, length),
            Setup::new(causal, 5, 2, length - 27),
            Setup::new(circular, 3, 2, length),
            Setup {
                taps: 70,
                ..Setup::new(causal, 2, 2, 3 * length)
            },
        ] {
            push(
                "two passes",
                Setup {
                    tuning,
                    ..setup.gated(types)
                },
            );
        }
    }
    for types in [[F32; 4], [F16, F32, F16, F16]] {
        let tuning = long(32, 8, 64, 3 * 8 * 2048);
        push(
            "three passes",
            Setup {
                tuning,
                ..Setup::new(causal, 2, 5, 2048).gated(types)
            },
        );
        push(
            "three passes",
            Setup {
                tuning,
                margin: 5,
                ..Setup::new(causal, 2, 5, 1501).gated(types)
            },
        );
        push(
            "three passes",
            Setup {
                tuning,
                ..Setup::new(circular, 3, 2, 2048).gated(types)
            },
        );
        let tuning = long(4, 32, 256, 1 << 20);
        push(
            "three passes",
            Setup {
                tuning,
                ..Setup::new(causal, 2, 3, 1024).gated(types)
            },
        );
        push(
            "three passes",
            Setup {
                tuning,
                taps: 300,
                ..Setup::new(causal, 2, 3, 5000).gated(types)
            },
        );
    }
    push("three passes", Setup::new(causal, 1, 1, 1 << 15));
    push("three passes", Setup::new(circular, 1, 1, 1 << 15));
    for (taps, length, margin) in [
        (1, 3000, 0),
        (5, 1000, 0),
        (64, 3001, 2),
        (130, 2048, 4),
        (1000, 9000, 0),
    ] {
        for types in [[F32; 4], [F16, F32, F16, F16]] {
            push(
                "partial",
                Setup {
                    taps,
                    margin,
                    ..Setup::new(causal, 2, 2, length).gated(types)
                },
            );
        }
    }
    for (taps, length) in [
        (1, 3),
        (7, 7),
        (5, 100),
        (100, 100),
        (300, 1000),
        (1000, 1500),
    ] {
        push(
            "circular of any length",
            Setup {
                taps,
                ..Setup::new(circular, 2, 3, length)
            },
        );
    }
    push(
        "circular of any length",
        Setup {
            taps: 60,
            margin: 1,
            ..Setup::new(circular, 2, 3, 601).gated([F16, F32, F16, F16])
        },
    );
    // On the device's matrix units, if it has any.
    let mut half = |setup: Setup| {
        let name = format!("{setup:?}");
        cases.push(Case::new("fftconv", "half", name, move |ctx| {
            match ctx.capabilities().matrix_elements {
                true => setup.run(ctx),
                false => Ok(Outcome::skipped("elements of cooperative matrices")),
            }
        }));
    };
    for (batch, length) in [
        (3, 1024),
        (2, 2048),
        (9, 4096),
        (3, 8192),
        (2, 16384),
        (2, 32768),
        (1, 65536),
    ] {
        half(Setup::half(batch, length));
    }
    half(Setup::half(3, 1000));
    half(Setup {
        margin: 8,
        taps: 3001,
        ..Setup::half(2, 3000 + 8)
    });
    half(Setup {
        margin: 16,
        ..Setup::half(2, 20_008)
    });
    half(Setup {
        gates: [true, false],
        ..Setup::half(2, 4096)
    });
    half(Setup {
        gates: [false, true],
        ..Setup::half(2, 8192)
    });
    half(Setup {
        gates: [false, false],
        skip: false,
        ..Setup::half(2, 1024)
    });
    // Parts of 8192 points in memory, where they do not meet by default.
    half(Setup {
        tuning: Some(Tuning::Monarch(two_parts(Meet::Memory))),
        gates: [false; 2],
        ..Setup::half(3, 8192)
    });
    for (batch, length) in [(9, 8192), (2, 8000), (2, 32768)] {
        half(Setup {
            gates: [false; 2],
            ..Setup::half(batch, length)
        });
    }
    for (length, kept) in [
        (1024, 1),
        (4096, 1),
        (4096, 3),
        (4088, 2),
        (8192, 1),
        (16384, 3),
        (32768, 4),
        (32768, 1),
    ] {
        half(Setup {
            pattern: Pattern::Kept(kept),
            skip: false,
            ..Setup::half(2, length)
        });
    }
    for (fold, kept, meet, length) in [
        (1, 4, Meet::Memory, 1024),
        (2, 2, Meet::Memory, 2040),
        (2, 1, Meet::Memory, 2048),
        (4, 3, Meet::Workgroup, 4088),
    ] {
        let tuning = MonarchTuning {
            units: MatrixUnits::Emulated,
            last: 4,
            fold,
            meet,
            rounds: 8,
            hold: Hold::Matrices,
            kept,
            // A row at a time.
            scratch: 1 << 14,
        };
        let setup = Setup {
            tuning: Some(Tuning::Monarch(tuning)),
            pattern: if kept < tuning.period() {
                Pattern::Kept(kept)
            } else {
                Pattern::All
            },
            channels: 1,
            skip: kept == tuning.period(),
            gates: [meet == Meet::Memory; 2],
            ..Setup::half(1, length)
        };
        let name = format!("{setup:?}");
        // Where shaders may use f16. Software drivers compile the checked form for minutes, in gigabytes.
        cases.push(Case::new("fftconv", "half emulated", name, move |ctx| {
            let caps = ctx.capabilities();
            let fast = caps.class != DeviceClass::Software || ctx.checks() == ShaderChecks::Off;
            match caps.shader_f16 && fast {
                true => setup.run(ctx),
                false => Ok(Outcome::skipped(
                    "f16 in shaders, compiled in reasonable time",
                )),
            }
        }));
    }
    // Of the lengths the longest; many seconds each for the oracle, so where a device has room for such sequences.
    for setup in [
        Setup::new(causal, 1, 1, 4_194_304),
        Setup::new(circular, 2, 1, 4_194_304),
        Setup {
            taps: 2_300_000,
            ..Setup::new(causal, 1, 1, 2_300_000).gated([F16, F32, F16, F16])
        },
    ] {
        let name = format!("{setup:?}");
        let group = format!("millions {:?} {}", setup.boundary, setup.length);
        cases.push(Case::new("fftconv", group, name, move |ctx| {
            match ctx.capabilities().binding_bytes >= 1 << 30 {
                true => setup.run(ctx),
                false => Ok(Outcome::skipped("storage bindings of 1 GiB")),
            }
        }));
    }
    let mut sampled = grid();
    sampled.push(("small".into(), Setup::new(circular, 3, 5, 256), ANY));
    sampled.push((
        "64 rows of 2.3 million in 8 GiB".into(),
        Setup {
            skip: false,
            ..Setup::new(causal, 1, 64, 2_300_000).gated([F16, F32, F16, F16])
        },
        8 << 30,
    ));
    for (name, setup, limit) in sampled {
        let group = format!("grid {}", setup.length);
        cases.push(Case::new("fftconv", group, name.clone(), move |ctx| {
            let large = ctx.capabilities().binding_bytes >= 1 << 30;
            match (large, limit) {
                (false, _) if name != "small" => Ok(Outcome::skipped("storage bindings of 1 GiB")),
                (_, ANY) => setup.sampled(ctx, limit),
                #[cfg(target_arch = "wasm32")]
                _ => Ok(Outcome::skipped("a context of its own")),
                // Its own context: others' cases run beside this one.
                #[cfg(not(target_arch = "wasm32"))]
                _ => setup.sampled(&Context::new()?, limit),
            }
        }));
    }
    for arithmetic in [Arithmetic::Full, Arithmetic::Half] {
        let name = format!("{arithmetic:?}");
        cases.push(Case::new("fftconv", "overflow", name, move |ctx| {
            overflow(ctx, arithmetic)
        }));
    }
    for taps in [16, 1000] {
        let name = format!("{taps} taps");
        cases.push(Case::new("fftconv", "memory", name, move |_| bounded(taps)));
    }
    for (taps, chunks, dtype) in [
        (1, &[5, 1][..], F32),
        (40, &[64, 1, 300, 3000][..], F32),
        (300, &[1000, 1000, 17][..], F16),
    ] {
        let name = format!("{taps} taps, chunks {chunks:?}, {dtype}");
        cases.push(Case::new("fftconv", "stream", name, move |ctx| {
            stream(ctx, taps, chunks, dtype)
        }));
    }
    for (boundary, length) in [(causal, 100), (circular, 128), (circular, 90)] {
        let name = format!("{boundary:?} {length}");
        cases.push(Case::new(
            "fftconv",
            "filter in frequency",
            name,
            move |ctx| in_frequency(ctx, boundary, length),
        ));
    }
    if let Some(tuning) = long(16, 16, 64, 1 << 20) {
        cases.extend(fftconv_backward::cases(tuning));
    }
    cases
}

/// A sequence in chunks, gated, is the sequence.
fn stream(ctx: &Context, taps: usize, chunks: &[usize], dtype: DType) -> Result<Outcome, Failure> {
    let (batch, channels, length) = (2, 2, chunks.iter().sum::<usize>());
    let mut random = Random::new(Case::seed(&format!("stream {taps} {chunks:?}")));
    let n = batch * channels * length;
    let [u, v, w] = [0; 3].map(|_| random.normals(n, dtype));
    let k = random.normals(channels * taps, F32);
    let shape = [batch, channels, length];
    let tensor = |x: &[f32]| Tensor::from_f32(ctx, dtype, x, shape);
    let (u_in, v_in, w_in, y) = (
        tensor(&u)?,
        tensor(&v)?,
        tensor(&w)?,
        poisoned(ctx, dtype, shape)?,
    );
    let k_in = Tensor::from_slice(ctx, &k, [channels, taps])?;
    let mut stream = ConvStream::new(&k_in, None, batch)?;
    let mut from = 0;
    for &chunk in chunks {
        let part = |t: &Tensor| t.narrow(2, from..from + chunk);
        let (u, v, w, y) = (part(&u_in)?, part(&v_in)?, part(&w_in)?, part(&y)?);
        let args = ConvArgs::new(&u, &y).gate_in(&v).gate_out(&w);
        ctx.record(|pass| stream.push(pass, &args))?;
        from += chunk;
    }
    let row = |x: &[f32], r: usize| x[r * length..(r + 1) * length].to_vec();
    let mut values = (y.to_f32_vec()?, Vec::new(), Vec::new());
    for r in 0..batch * channels {
        let (u, v, w) = (row(&u, r), row(&v, r), row(&w, r));
        let k = &k[r % channels * taps..][..taps];
        let (wide_v, wide_w) = (widen(&v), widen(&w));
        let sum = |u: &[f64], k: &[f64]| convolve(Boundary::Causal, u, k);
        values.1.extend(gated(
            sum,
            &widen(&u),
            [Some(&wide_v), Some(&wide_w)],
            &widen(k),
            None,
        ));
        let by = |conv: &Convolve<'_>| gated(conv, &u, [Some(&v), Some(&w)], k, None);
        let naive = [
            by(&|u, k| by_fft(Boundary::Causal, u, k)),
            by(&|u, k| by_fft_of(2 * (u.len() + k.len()).next_power_of_two(), [u, &[]], k)),
        ];
        let naive = farther(&values.1[values.1.len() - length..], naive);
        values.2.extend(naive.into_iter().map(|y| round(y, dtype)));
    }
    check(&values.0, &values.1, &values.2, RIGHT_ANGLE)
}

/// A filter given by its transform is the filter.
fn in_frequency(ctx: &Context, boundary: Boundary, length: usize) -> Result<Outcome, Failure> {
    let channels = 2;
    let mut random = Random::new(Case::seed(&format!("in frequency {boundary:?} {length}")));
    let (u, k) = (
        random.normals(channels * length, F32),
        random.normals(channels * length, F32),
    );
    let points = match boundary {
        Boundary::Causal => 2 * length,
        Boundary::Circular => length,
    };
    let spectra = k.chunks(length).flat_map(|k| {
        let value = |n: usize| k.get(n).map_or([0.0; 2], |&k| [f64::from(k), 0.0]);
        let spectrum = dft(&(0..points).map(value).collect::<Vec<_>>(), -1);
        spectrum[..points / 2 + 1]
            .iter()
            .flat_map(|z| [z[0] as f32, z[1] as f32])
            .collect::<Vec<_>>()
    });
    let spectra: Vec<f32> = spectra.collect();
    let spectrum = Tensor::from_slice(ctx, &spectra, [channels, points / 2 + 1, 2])?;
    let filter = FftConv::new(boundary).filter_in_frequency(&spectrum, None, length)?;
    let y = filter.forward(&Tensor::from_slice(ctx, &u, [1, channels, length])?)?;
    let (mut exact, mut naive) = (Vec::new(), Vec::new());
    for (u, k) in u.chunks(length).zip(k.chunks(length)) {
        let sum = convolve(boundary, &widen(u), &widen(k));
        // The inverse transform of the filter is one more than naive arithmetic has: its error doubles.
        let padded = by_fft_of(4 * length.next_power_of_two(), [&[u, u].concat(), &[]], k);
        let from = if boundary == Boundary::Causal {
            0
        } else {
            length
        };
        let transformed = padded[from..from + length].iter().zip(&sum);
        naive.extend(transformed.map(|(&x, &e)| (e + 2.0 * (f64::from(x) - e)) as f32));
        exact.extend(sum);
    }
    check(&y.to_f32_vec()?, &exact, &naive, RIGHT_ANGLE)
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for boundary in [Boundary::Causal, Boundary::Circular] {
        for bits in [1, 4, 5, 9, 12, 13, 15, 20] {
            for (types, gates) in [
                ([F32; 4], false),
                ([F16, F32, F16, F16], true),
                ([BF16, BF16, F32, F16], true),
            ] {
                let found = (|| {
                    let length = 1 << bits;
                    let plan = FilterPlan::new(
                        caps,
                        FftConv::new(boundary),
                        &Layout::contiguous(types[1], [5, length])?,
                        length,
                        None,
                    )?;
                    let layout = |dtype| Layout::contiguous(dtype, [3, 5, length]);
                    let (u, g, y) = (layout(types[0])?, layout(types[2])?, layout(types[3])?);
                    let args = ConvArgs {
                        u: &u,
                        gate_in: gates.then_some(&g),
                        gate_out: gates.then_some(&g),
                        y: &y,
                    };
                    let k = Layout::contiguous(types[1], [5, length])?;
                    let d = Layout::contiguous(F32, [5])?;
                    let mut steps = plan.spectrum(caps, &k, gates.then_some(&d))?;
                    steps.extend(plan.convolution(caps, &args)?);
                    Ok::<_, flashwave::Error>(steps.into_iter().map(|s| s.launch))
                })();
                launches.extend(found.expect("plans"));
            }
        }
    }
    for boundary in [Boundary::Causal, Boundary::Circular] {
        let found = (|| {
            let k = Layout::contiguous(F32, [5, 1024])?;
            let conv = FftConv::new(boundary);
            let plan = FilterPlan::new(caps, conv, &k, 1024, Some(two_passes(4)))?;
            let u = Layout::contiguous(F32, [3, 5, 1024])?;
            plan.convolution(caps, &ConvArgs::new(&u, &u))
        })();
        launches.extend(found.expect("plans").into_iter().map(|s| s.launch));
    }
    for length in [1024, 2048, 4096, 8192, 65536] {
        for (gates, pattern, played) in [
            (true, Pattern::All, length),
            (false, Pattern::Kept(1), length - 8),
        ] {
            let found = (|| {
                let conv = FftConv::causal().half();
                let conv = if caps.matrix_elements {
                    conv.sparse(pattern)
                } else {
                    conv
                };
                let k = Layout::contiguous(F32, [5, length])?;
                let plan = FilterPlan::new(caps, conv, &k, length, None)?;
                let u = Layout::contiguous(F16, [3, 5, played])?;
                let args = ConvArgs {
                    u: &u,
                    gate_in: gates.then_some(&u),
                    gate_out: gates.then_some(&u),
                    y: &u,
                };
                let d = Layout::contiguous(F32, [5])?;
                let mut steps = plan.spectrum(caps, &k, gates.then_some(&d))?;
                steps.extend(plan.convolution(caps, &args)?);
                Ok::<_, flashwave::Error>(steps.into_iter().map(|s| s.launch))
            })();
            launches.extend(found.expect("plans"));
        }
    }
    for meet in [Meet::Memory, Meet::Workgroup] {
        let tuning = Tuning::Monarch(two_parts(meet));
        let found = (|| {
            let k = Layout::contiguous(F32, [5, 8192])?;
            let conv = FftConv::causal().half();
            let plan = FilterPlan::new(caps, conv, &k, 8192, Some(tuning))?;
            let u = Layout::contiguous(F16, [3, 5, 8192])?;
            plan.convolution(caps, &ConvArgs::new(&u, &u))
        })();
        // Where the device has what it takes.
        let steps = found.into_iter().flatten();
        launches.extend(steps.map(|s| s.launch));
    }
    for (dk, dd, first) in [
        (true, true, true),
        (true, false, false),
        (false, true, false),
    ] {
        let (k, d) = (
            Layout::contiguous(F32, [3, 5]),
            Layout::contiguous(F32, [3]),
        );
        let (k, d) = (k.expect("a layout"), d.expect("a layout"));
        launches.extend(accumulate(
            caps,
            [3, 5, 8],
            dk.then_some(&k),
            dd.then_some(&d),
            first,
        ));
    }
    launches
}
