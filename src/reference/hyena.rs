//! The Hyena operator of order 2 and a whole Hyena on the CPU, token by token, generic over the arithmetic
//! (arXiv 2302.10866).

use super::elementwise::combine;
use super::fft::{radix2, times};
use super::llama::{add, product, rms_norm};
use super::{Real, widen_as};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::elementwise::{Activation, BinaryOp};
use crate::loader::Weights;
use crate::model::{FilterConfig, HyenaConfig};

/// The implicit filters of a layer: an MLP from positions to the taps of every channel.
///
/// h(n) = out sin(w (W_i … sin(w (W_0 features(n) + b_0)) … + b_i)) exp(-n / (positions - 1) |decay|), plus the skip
/// term where n = 0.
pub struct ImplicitFilter<R> {
    config: FilterConfig,
    positions: usize,
    /// Weights `[width, inputs]` and bias of each layer of sines.
    layers: Vec<(Vec<R>, Vec<R>)>,
    /// `[channels, width]`.
    out: Vec<R>,
    decay: Vec<R>,
    skip: Vec<R>,
}

impl<R: Real> ImplicitFilter<R> {
    /// The filters of a layer of these weights, in the precision that they are stored in.
    pub fn new(weights: &Weights, layer: usize) -> Result<Self> {
        let c = weights.config().hyena()?;
        let read = |part: &str| -> Result<Vec<R>> {
            let name = format!("model.layers.{layer}.hyena.{part}");
            Ok(widen_as(&weights.tensor(&name)?.to_f32()?, DType::F32))
        };
        let layers = 0..=c.filter.inner_layers;
        Ok(Self {
            config: c.filter,
            positions: c.max_positions,
            layers: layers
                .map(|j| {
                    let of = |part: &str| read(&format!("filter.layers.{j}.{part}"));
                    Ok((of("weight")?, of("bias")?))
                })
                .collect::<Result<_>>()?,
            out: read("filter.out.weight")?,
            decay: read("filter.decay")?,
            skip: read("skip")?,
        })
    }

    /// The taps of every channel at lag `n`, the skip term in the first.
    pub fn taps(&self, n: usize) -> Vec<R> {
        let share = n as f64 / (self.positions as f64 - 1.0).max(1.0);
        let mut x: Vec<R> = features(&self.config, self.positions, n, share);
        for (weight, bias) in &self.layers {
            let frequency = R::of(self.config.sine_frequency);
            let sums = product(weight, &x);
            x = sums
                .iter()
                .zip(bias)
                .map(|(&s, &b)| (frequency * (s + b)).sin())
                .collect();
        }
        let taps = product(&self.out, &x).into_iter().zip(&self.decay);
        let mut taps: Vec<R> = taps
            .map(|(h, &decay)| h * (-R::of(share) * decay.abs()).exp())
            .collect();
        if n == 0 {
            add(&mut taps, &self.skip);
        }
        taps
    }
}

/// Features of position `n`: its share of the context, cosines, negative sines.
fn features<R: Real>(c: &FilterConfig, positions: usize, n: usize, share: f64) -> Vec<R> {
    let bands = c.features / 2;
    let turn = std::f64::consts::TAU / positions as f64 * n as f64;
    // From 1e-4 to bands - 1, evenly spaced.
    let last = bands.saturating_sub(1).max(1) as f64;
    let angle = |b: usize| {
        let along = b as f64 / last;
        turn * (1e-4 * (1.0 - along) + (bands as f64 - 1.0) * along)
    };
    std::iter::once(share)
        .chain((0..bands).map(|b| angle(b).cos()))
        .chain((0..bands).map(|b| -angle(b).sin()))
        .map(R::of)
        .collect()
}

/// What the operator remembers of a text.
#[derive(Clone, Default)]
pub struct OperatorState<R> {
    /// Projections of each position, `3 channels` each.
    projections: Vec<Vec<R>>,
    /// x1 v of each position, `channels` each.
    inputs: Vec<Vec<R>>,
}

/// The short convolution at the last of `projections`, those before it in order; `weight` `[rows, taps]`, the oldest tap
/// first. Summed from the present on, and from the bias and the oldest on.
pub fn short_filter<R: Real>(projections: &[Vec<R>], weight: &[R], bias: &[R]) -> [Vec<R>; 2] {
    let size = weight.len() / bias.len();
    let last = projections.len() - 1;
    let terms = |c: usize| -> Vec<R> {
        let lags = 0..size.min(last + 1);
        lags.map(|lag| weight[c * size + size - 1 - lag] * projections[last - lag][c])
            .chain([bias[c]])
            .collect()
    };
    [
        (0..bias.len()).map(|c| sum(terms(c))).collect(),
        (0..bias.len())
            .map(|c| sum(terms(c).into_iter().rev()))
            .collect(),
    ]
}

fn sum<R: Real>(terms: impl IntoIterator<Item = R>) -> R {
    terms.into_iter().fold(R::zero(), |sum, term| sum + term)
}

/// What `x` contributes to `outputs` positions of one channel, the first of them `lag` after the first of `x`; in the order
/// of the inputs, and in the other.
pub fn block_conv<R: Real>(x: &[R], taps: &[R], lag: usize, outputs: usize) -> [Vec<R>; 2] {
    let terms = |r: usize| -> Vec<R> {
        let lagged = x
            .iter()
            .enumerate()
            .map(|(s, &x)| ((lag + r).checked_sub(s), x));
        lagged
            .filter_map(|(lag, x)| Some(*taps.get(lag?)? * x))
            .collect()
    };
    [
        (0..outputs).map(|r| sum(terms(r))).collect(),
        (0..outputs)
            .map(|r| sum(terms(r).into_iter().rev()))
            .collect(),
    ]
}

/// One position of the operator: the short convolution of `projection` (x0, x1, v; `weight` `[3 channels, taps]`, the
/// oldest first), then x0 times the long convolution of x1 v. `taps[n]` are the long filters at lag n.
pub fn operator<R: Real>(
    state: &mut OperatorState<R>,
    projection: Vec<R>,
    weight: &[R],
    bias: &[R],
    taps: &[Vec<R>],
) -> Vec<R> {
    state.projections.push(projection);
    let last = state.projections.len() - 1;
    let [short, _] = short_filter(&state.projections, weight, bias);
    let (x0, rest) = short.split_at(bias.len() / 3);
    let (x1, v) = rest.split_at(x0.len());
    state
        .inputs
        .push(x1.iter().zip(v).map(|(&a, &b)| a * b).collect());
    x0.iter()
        .enumerate()
        .map(|(c, &gate)| {
            let lags = 0..=last;
            gate * lags.fold(R::zero(), |sum, lag| {
                sum + taps[lag][c] * state.inputs[last - lag][c]
            })
        })
        .collect()
}

/// A Hyena in host memory. Matrices are rounded to `storage` and then widened, as a device model that stores them so
/// sees them.
pub struct Hyena<R> {
    config: HyenaConfig,
    embedding: Vec<R>,
    layers: Vec<Layer<R>>,
    norm: Vec<R>,
    head: Vec<R>,
    states: Vec<OperatorState<R>>,
}

struct Layer<R> {
    hyena_norm: Vec<R>,
    in_proj: Vec<R>,
    short_weight: Vec<R>,
    short_bias: Vec<R>,
    filter: ImplicitFilter<R>,
    taps: Vec<Vec<R>>,
    out_proj: Vec<R>,
    mlp_norm: Vec<R>,
    gate: Vec<R>,
    up: Vec<R>,
    down: Vec<R>,
}

impl<R: Real> Hyena<R> {
    /// The model of these weights.
    pub fn new(weights: &Weights, storage: DType) -> Result<Self> {
        let config = weights.config().hyena()?.clone();
        let read = |name: &str, dtype: DType| -> Result<Vec<R>> {
            Ok(widen_as(&weights.tensor(name)?.to_f32()?, dtype))
        };
        let layer = |i: usize| -> Result<Layer<R>> {
            let of = |part: &str, dtype| read(&format!("model.layers.{i}.{part}"), dtype);
            let (matrix, vector) = (storage, DType::F32);
            Ok(Layer {
                hyena_norm: of("input_layernorm.weight", vector)?,
                in_proj: of("hyena.in_proj.weight", matrix)?,
                short_weight: of("hyena.short_filter.weight", vector)?,
                short_bias: of("hyena.short_filter.bias", vector)?,
                filter: ImplicitFilter::new(weights, i)?,
                taps: Vec::new(),
                out_proj: of("hyena.out_proj.weight", matrix)?,
                mlp_norm: of("post_hyena_layernorm.weight", vector)?,
                gate: of("mlp.gate_proj.weight", matrix)?,
                up: of("mlp.up_proj.weight", matrix)?,
                down: of("mlp.down_proj.weight", matrix)?,
            })
        };
        let embedding = read("model.embed_tokens.weight", storage)?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            read("lm_head.weight", storage)?
        };
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: read("model.norm.weight", DType::F32)?,
            states: vec![
                OperatorState {
                    projections: Vec::new(),
                    inputs: Vec::new()
                };
                config.layers
            ],
            config,
            embedding,
            head,
        })
    }

    /// Logits after one more token.
    pub fn feed(&mut self, token: u32) -> Vec<R> {
        let c = &self.config;
        let mut hidden = self.embedding[token as usize * c.hidden_size..][..c.hidden_size].to_vec();
        for (layer, state) in self.layers.iter_mut().zip(&mut self.states) {
            layer.taps.push(layer.filter.taps(state.inputs.len()));
            let projection = layer.project(&hidden, c.norm_eps);
            let mixed = operator(
                state,
                projection,
                &layer.short_weight,
                &layer.short_bias,
                &layer.taps,
            );
            layer.finish(&mut hidden, &mixed, c.norm_eps);
        }
        product(&self.head, &rms_norm(&hidden, &self.norm, c.norm_eps))
    }

    /// Logits of every token of a text of its own, the long convolutions by textbook FFTs: naive arithmetic for what a
    /// device does by FFT.
    pub fn text(&self, tokens: &[u32]) -> Vec<R> {
        let c = &self.config;
        let embed =
            |&t: &u32| self.embedding[t as usize * c.hidden_size..][..c.hidden_size].to_vec();
        let mut hidden: Vec<Vec<R>> = tokens.iter().map(embed).collect();
        for layer in &self.layers {
            let projections: Vec<Vec<R>> = hidden
                .iter()
                .map(|h| layer.project(h, c.norm_eps))
                .collect();
            let short: Vec<Vec<R>> = (0..tokens.len())
                .map(|t| {
                    let [short, _] =
                        short_filter(&projections[..=t], &layer.short_weight, &layer.short_bias);
                    short
                })
                .collect();
            let taps: Vec<Vec<R>> = (0..tokens.len()).map(|n| layer.filter.taps(n)).collect();
            let mut mixed = vec![vec![R::zero(); c.hidden_size]; tokens.len()];
            for channel in 0..c.hidden_size {
                let (x1, v) = (c.hidden_size + channel, 2 * c.hidden_size + channel);
                let z: Vec<R> = short.iter().map(|s| s[x1] * s[v]).collect();
                let h: Vec<R> = taps.iter().map(|lag| lag[channel]).collect();
                for ((out, s), y) in mixed.iter_mut().zip(&short).zip(convolve(&z, &h)) {
                    out[channel] = s[channel] * y;
                }
            }
            for (hidden, mixed) in hidden.iter_mut().zip(&mixed) {
                layer.finish(hidden, mixed, c.norm_eps);
            }
        }
        hidden
            .iter()
            .flat_map(|h| product(&self.head, &rms_norm(h, &self.norm, c.norm_eps)))
            .collect()
    }
}

/// The first elements of the convolution of sequences of one length.
fn convolve<R: Real>(x: &[R], h: &[R]) -> Vec<R> {
    let points = (2 * x.len()).next_power_of_two();
    let spectrum = |values: &[R]| {
        let mut padded = vec![[R::zero(); 2]; points];
        for (p, &value) in padded.iter_mut().zip(values) {
            p[0] = value;
        }
        radix2(&padded, -1)
    };
    let products = spectrum(x).into_iter().zip(spectrum(h));
    let products: Vec<_> = products.map(|(a, b)| times(a, b)).collect();
    let scale = R::of(1.0 / points as f64);
    let sequence = radix2(&products, 1).into_iter().take(x.len());
    sequence.map(|[re, _]| re * scale).collect()
}

impl<R: Real> Layer<R> {
    /// x0, x1 and v before their short convolution.
    fn project(&self, hidden: &[R], eps: f32) -> Vec<R> {
        product(&self.in_proj, &rms_norm(hidden, &self.hyena_norm, eps))
    }

    /// What follows the operator.
    fn finish(&self, hidden: &mut [R], mixed: &[R], eps: f32) {
        add(hidden, &product(&self.out_proj, mixed));
        let x = rms_norm(hidden, &self.mlp_norm, eps);
        let (gate, up) = (product(&self.gate, &x), product(&self.up, &x));
        let silu = BinaryOp::Gated(Activation::Silu);
        let gated: Vec<R> = gate
            .iter()
            .zip(&up)
            .map(|(&g, &u)| combine(silu, g, u))
            .collect();
        add(hidden, &product(&self.down, &gated));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One channel, gates of one, a short filter that passes the present value: what is left is the long convolution.
    #[test]
    fn with_open_gates_it_is_a_convolution() {
        let (taps, inputs) = ([0.5, -1.0, 2.0, 0.25], [3.0, 1.0, -2.0, 4.0]);
        let lags: Vec<Vec<f64>> = taps.iter().map(|&t| vec![t]).collect();
        let weight = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let mut state = OperatorState::default();
        let out: Vec<f64> = inputs
            .iter()
            .map(|&u| operator(&mut state, vec![1.0, 1.0, u], &weight, &[0.0; 3], &lags)[0])
            .collect();
        // (0.5 - z + 2 z^2 + z^3 / 4) (3 + z - 2 z^2 + 4 z^3) up to z^3.
        assert_eq!(out, [1.5, -2.5, 4.0, 6.75]);
    }

    #[test]
    fn the_short_filter_reads_the_oldest_first() {
        let weight = [10.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let mut state = OperatorState::default();
        let mut step = |x0: f64| {
            let taps = [vec![1.0], vec![0.0]];
            operator(
                &mut state,
                vec![x0, 1.0, 1.0],
                &weight,
                &[0.5, 0.0, 0.0],
                &taps,
            )[0]
        };
        assert_eq!((step(2.0), step(3.0)), (2.5, 23.5));
    }

    #[test]
    fn features_turn_around_the_context() {
        let c = FilterConfig {
            features: 5,
            width: 1,
            inner_layers: 0,
            sine_frequency: 1.0,
        };
        // A quarter of the way: frequency 1e-4, then 1.
        let f: Vec<f64> = features(&c, 64, 16, 0.25);
        let expected = [0.25, 1.0, 0.0, -std::f64::consts::TAU * 0.25e-4, -1.0];
        for (f, e) in f.iter().zip(expected) {
            assert!((f - e).abs() < 1e-7, "{f} {e}");
        }
    }
}
