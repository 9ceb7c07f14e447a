//! A model of whatever architecture a file holds.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::loader::Weights;
use crate::model::generate::Decode;
use crate::model::weights::Progress;
use crate::model::{Hyena, Llama, LlamaOptions, ModelConfig};

/// A language model on the device.
#[derive(Clone)]
pub enum Model {
    /// Attention.
    Llama(Llama),
    /// Long convolutions.
    Hyena(Hyena),
}

impl Model {
    /// Loads what `weights` hold, telling `progress` after every tensor. A Hyena has no KV cache: `options.kv` must be
    /// `None` for it.
    pub fn load_with(
        ctx: &Context,
        weights: &Weights,
        options: LlamaOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        match (weights.config(), options.kv) {
            (ModelConfig::Llama(_), _) => {
                Llama::load_with(ctx, weights, options, progress).map(Self::Llama)
            }
            (ModelConfig::Hyena(_), None) => {
                Hyena::load_with(ctx, weights, options.weights, progress).map(Self::Hyena)
            }
            (ModelConfig::Hyena(_), Some(kv)) => Err(Error::argument(
                "kv",
                kv,
                "none for a Hyena, which has no KV cache",
            )),
        }
    }

    /// A text under way with room for `capacity` tokens.
    ///
    /// Errors if `capacity` is zero, over the model's positions, or too large for the device.
    pub fn session(&self, capacity: usize) -> Result<Box<dyn Decode>> {
        Ok(match self {
            Self::Llama(model) => Box::new(model.session(capacity)?),
            Self::Hyena(model) => Box::new(model.session(capacity)?),
        })
    }
}
