//! The long filters of a model for a length, by layer: evaluated once, on the host in f64 (WGSL grants a sine an error of
//! 2^-11, far over f32's), transformed once, and kept for every session of that length.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use crate::context::{Context, lock};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::fftconv::{ConvArgs, FftConv, Filter};
use crate::kernels::hyena::{BlockConv, Output, Relaxed, accumulate};
use crate::loader::Weights;
use crate::model::HyenaConfig;
use crate::recorder::Pass;
use crate::reference::hyena::ImplicitFilter;
use crate::tensor::Tensor;

/// Scratch memory for what an FFT pushes; the convolution itself may use the one before.
const SCRATCH: usize = 1;

/// Where taps come from, and those made so far.
pub(super) struct FilterBank {
    source: Source,
    channels: usize,
    layers: usize,
    made: Mutex<HashMap<(usize, Relaxed), Arc<Filters>>>,
}

enum Source {
    Implicit(Vec<ImplicitFilter<f64>>),
    Random,
}

/// The filters of every layer for texts up to a length.
pub(super) struct Filters {
    layers: Vec<LayerFilters>,
}

struct LayerFilters {
    /// `[channels, length]`.
    taps: Tensor,
    /// For the whole text, where it is too long to be convolved directly.
    whole: Option<Filter>,
    /// For pushes of the smallest block that is too long to be pushed directly, of twice that, and so on.
    pushes: Vec<Filter>,
    /// The smallest such block.
    first: usize,
}

impl LayerFilters {
    fn new(taps: Tensor, relaxed: Relaxed) -> Result<Self> {
        let length = taps.shape()[1];
        let over = relaxed.direct.saturating_add(1);
        let first = over.checked_next_power_of_two();
        let first = first.unwrap_or(usize::MAX).max(relaxed.block);
        let conv = FftConv::causal();
        // A block and the outputs after it are a text of twice its length, and meet as many lags.
        let blocks = std::iter::successors(Some(first), |b| b.checked_mul(2));
        let pushes = blocks.take_while(|&block| block < length).map(|block| {
            let lags = (2 * block).min(length);
            conv.filter(&taps.narrow(1, 0..lags)?, None, lags)
        });
        Ok(Self {
            whole: (length > relaxed.direct)
                .then(|| conv.filter(&taps, None, length))
                .transpose()?,
            pushes: pushes.collect::<Result<_>>()?,
            taps,
            first,
        })
    }

    fn push(&self, block: usize) -> Option<&Filter> {
        let doublings = (block / self.first).checked_ilog2()?;
        self.pushes.get(doublings as usize)
    }

    fn bytes(&self) -> u64 {
        let spectra = self.whole.iter().chain(&self.pushes).map(Filter::bytes);
        self.taps.layout().bytes() + spectra.sum::<u64>()
    }
}

impl FilterBank {
    /// The implicit filters of a model file.
    pub fn implicit(weights: &Weights) -> Result<Self> {
        let c = weights.config().hyena()?;
        let layers = (0..c.layers).map(|i| ImplicitFilter::new(weights, i));
        Ok(Self {
            source: Source::Implicit(layers.collect::<Result<_>>()?),
            channels: c.hidden_size,
            layers: c.layers,
            made: Mutex::default(),
        })
    }

    /// Decaying filters from a hash.
    pub fn random(c: &HyenaConfig) -> Self {
        Self {
            source: Source::Random,
            channels: c.hidden_size,
            layers: c.layers,
            made: Mutex::default(),
        }
    }

    /// The filters for texts of up to `length` tokens, transformed for what `relaxed` does by FFT.
    pub fn of(&self, ctx: &Context, length: usize, relaxed: Relaxed) -> Result<Arc<Filters>> {
        let mut made = lock(&self.made);
        if let Some(found) = made.get(&(length, relaxed)) {
            return Ok(found.clone());
        }
        let layers = (0..self.layers).map(|layer| {
            let taps = Tensor::from_slice(ctx, &self.taps(layer, length), [self.channels, length])?;
            LayerFilters::new(taps, relaxed)
        });
        let filters = Arc::new(Filters {
            layers: layers.collect::<Result<_>>()?,
        });
        made.insert((length, relaxed), filters.clone());
        Ok(filters)
    }

    /// `[channels, length]`.
    fn taps(&self, layer: usize, length: usize) -> Vec<f32> {
        let by_lag: Vec<Vec<f64>> = (0..length)
            .into_par_iter()
            .map(|lag| match &self.source {
                Source::Implicit(filters) => filters[layer].taps(lag),
                Source::Random => random_taps(self.channels, lag, length),
            })
            .collect();
        let mut taps = vec![0.0; self.channels * length];
        taps.par_chunks_exact_mut(length)
            .enumerate()
            .for_each(|(channel, row)| {
                for (tap, lag) in row.iter_mut().zip(&by_lag) {
                    *tap = lag[channel] as f32;
                }
            });
        taps
    }
}

/// Values in -1 .. 1 over a tenth of the length, falling.
fn random_taps(channels: usize, lag: usize, length: usize) -> Vec<f64> {
    let decay = (-(lag as f64) * 10.0 / length as f64).exp() * (10.0 / length as f64).sqrt();
    let noise = |channel: usize| {
        let mixed = ((channel * length + lag) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..channels).map(|c| noise(c) * decay).collect()
}

impl Filters {
    /// A layer's taps, `[channels, length]`.
    pub fn taps(&self, layer: usize) -> &Tensor {
        &self.layers[layer].taps
    }

    /// Records the convolution of `z` `[channels, length]`, zeros after a text, with a layer's filters into `out`, from
    /// the position that `text` begins at on at least: what lies after the text is what it contributes to later positions.
    pub fn whole(
        &self,
        pass: &mut Pass<'_>,
        layer: usize,
        z: &Tensor,
        text: Range<usize>,
        out: &Tensor,
    ) -> Result<()> {
        let layer = &self.layers[layer];
        if let Some(filter) = &layer.whole {
            return filter.run(pass, &ConvArgs::new(z, out));
        }
        let conv = BlockConv {
            lag: text.start,
            output: Output::Store,
        };
        let (inputs, length) = (z.narrow(1, 0..text.end)?, z.shape()[1]);
        let outputs = out.narrow(1, text.start..length)?;
        conv.run(pass, &inputs, &layer.taps, &outputs)
    }

    /// Records the push of the `block` inputs before position `end` into as many positions of `carried` from there on, or
    /// as many as there are. `z` is zero from `end` on.
    pub fn push(
        &self,
        pass: &mut Pass<'_>,
        layer: usize,
        z: &Tensor,
        carried: &Tensor,
        end: usize,
        block: usize,
    ) -> Result<()> {
        let layer = &self.layers[layer];
        let count = block.min(carried.shape()[1] - end);
        let outputs = carried.narrow(1, end..end + count)?;
        if let Some(filter) = layer.push(block) {
            let inputs = z.narrow(1, end - block..end + count)?;
            let pushed = pass.scratch(SCRATCH, DType::F32, inputs.shape())?;
            filter.run(pass, &ConvArgs::new(&inputs, &pushed))?;
            return accumulate(pass, &pushed.narrow(1, block..block + count)?, &outputs);
        }
        let conv = BlockConv {
            lag: block,
            output: Output::Add,
        };
        conv.run(pass, &z.narrow(1, end - block..end)?, &layer.taps, &outputs)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerFilters::bytes).sum()
    }
}
