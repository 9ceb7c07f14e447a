//! The long filters of a model for a length, by layer: evaluated once, on the host in f64 (WGSL grants a sine an error of
//! 2^-11, far over f32's), and kept for every session of that length.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use crate::context::{Context, lock};
use crate::error::Result;
use crate::kernels::hyena::{BlockConv, Output};
use crate::loader::Weights;
use crate::model::HyenaConfig;
use crate::recorder::Pass;
use crate::reference::hyena::ImplicitFilter;
use crate::tensor::Tensor;

/// Where taps come from, and those made so far.
pub(super) struct FilterBank {
    source: Source,
    channels: usize,
    layers: usize,
    made: Mutex<BTreeMap<usize, Arc<Filters>>>,
}

enum Source {
    Implicit(Vec<ImplicitFilter<f64>>),
    Random,
}

/// The filters of every layer for texts up to a length.
pub(super) struct Filters {
    layers: Vec<Tensor>,
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

    /// The filters for texts of up to `length` tokens.
    pub fn of(&self, ctx: &Context, length: usize) -> Result<Arc<Filters>> {
        let mut made = lock(&self.made);
        if let Some(found) = made.get(&length) {
            return Ok(found.clone());
        }
        let layers = (0..self.layers).map(|layer| {
            Tensor::from_slice(ctx, &self.taps(layer, length), [self.channels, length])
        });
        let filters = Arc::new(Filters {
            layers: layers.collect::<Result<_>>()?,
        });
        made.insert(length, filters.clone());
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
        &self.layers[layer]
    }

    /// Records the convolution of `z` `[channels, n]` with a layer's filters, from position `from` on, into `out`
    /// `[channels, ..]`: what lies at n and beyond is what z contributes to later positions.
    pub fn whole(
        &self,
        pass: &mut Pass<'_>,
        layer: usize,
        z: &Tensor,
        from: usize,
        out: &Tensor,
    ) -> Result<()> {
        let conv = BlockConv {
            lag: from,
            output: Output::Store,
        };
        conv.run(pass, z, self.taps(layer), out)
    }

    /// Records the push of the `block` inputs before position `end` into as many positions of `carried` from there on, or
    /// as many as there are.
    pub fn push(
        &self,
        pass: &mut Pass<'_>,
        layer: usize,
        z: &Tensor,
        carried: &Tensor,
        end: usize,
        block: usize,
    ) -> Result<()> {
        let last = (end + block).min(carried.shape()[1]);
        let conv = BlockConv {
            lag: block,
            output: Output::Add,
        };
        let inputs = z.narrow(1, end - block..end)?;
        let outputs = carried.narrow(1, end..last)?;
        conv.run(pass, &inputs, self.taps(layer), &outputs)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|t| t.layout().bytes()).sum()
    }
}
