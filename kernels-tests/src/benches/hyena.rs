//! Hyena with random weights: a token late in a text, and what tokens cost along a text.

use std::time::Duration;

use flashwave::kernels::ceilings::time;
use flashwave::kernels::hyena::Relaxed;
use flashwave::model::{FilterConfig, Hyena, HyenaConfig, HyenaSession};
use flashwave::{Capabilities, Context, DType, Result, Tensor};

use super::{Prepared, Row, Scale};

/// About the shape of the Hyena of 1.3 billion parameters (arXiv 2302.10866), with a context of 8K, or a small one.
fn shape(scale: Scale) -> HyenaConfig {
    let (hidden, inner, layers, positions) = scale.pick((2048, 5632, 24, 8192), (64, 172, 2, 256));
    HyenaConfig {
        vocab_size: scale.pick(50257, 512),
        hidden_size: hidden,
        intermediate_size: inner,
        layers,
        max_positions: positions,
        norm_eps: 1e-5,
        short_filter: 3,
        filter: FilterConfig {
            features: 5,
            width: 64,
            inner_layers: 1,
            sine_frequency: 10.0,
        },
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}

/// A session that has read all its positions but a block's, for tokens that complete none.
fn late(ctx: &Context, scale: Scale) -> Result<HyenaSession> {
    let model = Hyena::random(ctx, shape(scale), DType::F16)?;
    let (positions, vocab) = (model.config().max_positions, model.config().vocab_size);
    let mut session = model.session(positions)?;
    let text = positions - 64;
    let prompt: Vec<u32> = (0..text as u32).map(|i| i * 7919 % vocab as u32).collect();
    session.feed(&prompt)?;
    // In the middle of a block.
    for _ in 0..32 {
        session.feed(&[1])?;
    }
    ctx.wait()?;
    Ok(session)
}

/// Weights that a token reads.
fn parameters(c: &HyenaConfig) -> f64 {
    let layer = 4 * c.hidden_size * c.hidden_size + 3 * c.intermediate_size * c.hidden_size;
    (c.layers * layer + c.vocab_size * c.hidden_size) as f64
}

/// The rows.
pub fn rows(_: &Capabilities, scale: Scale) -> Vec<Row> {
    let c = shape(scale);
    let weights = parameters(&c);
    let name = format!(
        "Hyena {:.2}B f16 decode batch 1 at {}",
        weights / 1e9,
        c.max_positions - 32
    );
    vec![Row::memory("hyena", name, 2.0 * weights, move |ctx| {
        let session = late(ctx, scale)?;
        let ids = Tensor::from_slice(ctx, &[1u32], [1])?;
        let shape = [1, session.model().config().vocab_size];
        let logits = Tensor::empty(ctx, DType::F32, shape)?;
        // The position is not advanced: every run is the same step.
        Ok(Prepared::new("model", move |pass, _| {
            session.forward(pass, &ids, Some(&logits))
        }))
    })]
}

/// What tokens cost along a text.
#[derive(Clone, Debug)]
pub struct DecodeCost {
    /// The cut of the relaxed convolution.
    pub relaxed: Relaxed,
    /// Time of every token from the second on, pushes of completed blocks included.
    pub tokens: Vec<Duration>,
    /// Bytes that a token has to read whatever its position: the weights.
    pub weights: u64,
    /// Bytes that the session keeps, filters included.
    pub session: u64,
}

impl DecodeCost {
    /// Mean times of up to `count` runs of consecutive tokens: the last position of each, microseconds a token.
    pub fn means(&self, count: usize) -> Vec<(usize, f64)> {
        let window = self.tokens.len().div_ceil(count.max(1));
        let windows = self.tokens.chunks(window).enumerate();
        windows
            .map(|(i, times)| {
                let sum: Duration = times.iter().sum();
                let last = 1 + i * window + times.len();
                (last, sum.as_secs_f64() * 1e6 / times.len() as f64)
            })
            .collect()
    }

    /// The longest time of a token, in microseconds.
    pub fn worst(&self) -> f64 {
        let worst = self.tokens.iter().max().copied().unwrap_or_default();
        worst.as_secs_f64() * 1e6
    }
}

/// Texts of the model's whole context, token by token, one with each cut: relaxed as sessions are by default, and the sum over
/// the whole text for every token.
pub fn decode_costs(ctx: &Context) -> Result<Vec<DecodeCost>> {
    let scale = Scale::of(ctx.capabilities());
    let model = Hyena::random(ctx, shape(scale), DType::F16)?;
    let positions = model.config().max_positions;
    let whole = Relaxed {
        block: positions.next_power_of_two(),
        ..Relaxed::default()
    };
    let cuts = [Relaxed::default(), whole];
    cuts.into_iter()
        .map(|relaxed| {
            let mut session = model.session_with(positions, relaxed)?;
            let ids = Tensor::from_slice(ctx, &[1u32], [1])?;
            let logits = Tensor::empty(ctx, DType::F32, [1, model.config().vocab_size])?;
            session.feed(&[1])?;
            let mut tokens = Vec::with_capacity(positions);
            for _ in 1..positions {
                let (taken, _) = time(ctx, |pass| session.forward(pass, &ids, Some(&logits)))?;
                session.advance();
                tokens.push(taken);
            }
            Ok(DecodeCost {
                relaxed,
                tokens,
                weights: model.bytes_per_token(),
                session: session.bytes(),
            })
        })
        .collect()
}
