//! Which weights the layers of a model leave unread, and the thresholds that calibration found.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::loader::Weights;
use crate::model::LlamaConfig;

/// How a decoder layer skips weights. A magnitude passes a threshold if it is above it: zero leaves out zeros alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerSparsity {
    /// It does not.
    #[default]
    Dense,
    /// Neurons of the MLP whose gate, activated, does not pass are left out (CATS, arXiv 2404.08763).
    Cats {
        /// For |SiLU(gate)|.
        threshold: f32,
    },
    /// Inputs of every linear layer that do not pass are left out (TEAL, arXiv 2408.14690).
    Teal(InputThresholds),
}

/// Thresholds for the inputs of a decoder layer's linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputThresholds {
    /// Of the query, key and value projections: the layer's input after its norm.
    pub qkv: f32,
    /// Of the output projection: what attention gives.
    pub output: f32,
    /// Of the gate and up projections: the MLP's input after its norm.
    pub gate_up: f32,
    /// Of the down projection: F(gate) * up.
    pub down: f32,
}

/// A way to skip weights, without thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparseMethod {
    /// [`LayerSparsity::Cats`].
    Cats,
    /// [`LayerSparsity::Teal`].
    Teal,
}

impl SparseMethod {
    /// Its name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cats => "cats",
            Self::Teal => "teal",
        }
    }

    /// Names of the places in a layer that have a threshold, in the order of [`layer`](Self::layer).
    pub const fn places(self) -> &'static [&'static str] {
        match self {
            Self::Cats => &["gate"],
            Self::Teal => &["qkv", "output", "gate_up", "down"],
        }
    }

    /// A layer with these thresholds, one for each of [`places`](Self::places); missing ones are zero.
    pub fn layer(self, thresholds: &[f32]) -> LayerSparsity {
        let at = |i: usize| thresholds.get(i).copied().unwrap_or(0.0);
        match self {
            Self::Cats => LayerSparsity::Cats { threshold: at(0) },
            Self::Teal => LayerSparsity::Teal(InputThresholds {
                qkv: at(0),
                output: at(1),
                gate_up: at(2),
                down: at(3),
            }),
        }
    }
}

impl LayerSparsity {
    /// How, if it skips any.
    pub fn method(&self) -> Option<SparseMethod> {
        match self {
            Self::Dense => None,
            Self::Cats { .. } => Some(SparseMethod::Cats),
            Self::Teal(_) => Some(SparseMethod::Teal),
        }
    }

    /// Its thresholds, in the order of [`SparseMethod::places`].
    pub fn thresholds(&self) -> Vec<f32> {
        match self {
            Self::Dense => Vec::new(),
            Self::Cats { threshold } => vec![*threshold],
            Self::Teal(t) => vec![t.qkv, t.output, t.gate_up, t.down],
        }
    }
}

/// The thresholds of a model's layers: what `flashwave calibrate` writes, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Which model they are for: its sizes, and a hash of its last norm's weights.
    pub model: String,
    /// What share of the activations calibration aimed to leave out.
    pub sparsity: f64,
    /// Of each layer.
    pub layers: Vec<LayerSparsity>,
}

impl Thresholds {
    /// For the model of `weights`.
    pub fn new(weights: &Weights, sparsity: f64, layers: Vec<LayerSparsity>) -> Result<Self> {
        let model = fingerprint(weights)?;
        Ok(Self {
            model,
            sparsity,
            layers,
        })
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::format(path, e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|e| Error::io(path, e))
    }

    /// Reads a file, and the layers that it has for the model of `weights`.
    ///
    /// Errors on another model's thresholds, a sparsity outside 0 to 1, and thresholds that are no numbers or negative.
    pub fn load(path: &Path, weights: &Weights) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let found: Self =
            serde_json::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        let model = fingerprint(weights)?;
        if found.model != model {
            let message = format!("thresholds for {}; the model is {model}", found.model);
            return Err(Error::format(path, message));
        }
        crate::kernels::mlp::check_sparsity(found.sparsity)
            .and_then(|()| check_layers(&found.layers, weights.config().layers()))
            .map_err(|e| Error::format(path, e.to_string()))?;
        Ok(found)
    }
}

/// Errors unless there is nothing, or an entry for each of `layers` with thresholds that kernels take.
pub(crate) fn check_layers(found: &[LayerSparsity], layers: usize) -> Result<()> {
    if !found.is_empty() && found.len() != layers {
        return Err(Error::argument(
            "sparsity",
            format!("thresholds of {} layers", found.len()),
            format!("none, or those of the model's {layers}"),
        ));
    }
    let all = found.iter().flat_map(LayerSparsity::thresholds);
    for threshold in all {
        crate::kernels::mlp::threshold_bits(threshold)?;
    }
    Ok(())
}

/// What tells one model's thresholds from another's.
fn fingerprint(weights: &Weights) -> Result<String> {
    let c: &LlamaConfig = weights.config().llama()?;
    let norm = weights.tensor("model.norm.weight")?.to_f32()?;
    // FNV-1a.
    let hash = norm
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
    Ok(format!(
        "{} layers of {} x {}, norm {hash:016x}",
        c.layers, c.hidden_size, c.intermediate_size
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_written_and_read() {
        let layers = vec![
            LayerSparsity::Dense,
            SparseMethod::Cats.layer(&[0.25]),
            SparseMethod::Teal.layer(&[0.1, 0.2, 0.3, 0.4]),
        ];
        let text = serde_json::to_string(&layers).unwrap();
        assert!(
            text.starts_with(r#"["dense",{"cats":{"threshold":0.25}},{"teal":{"qkv":0.1"#),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<Vec<LayerSparsity>>(&text).unwrap(),
            layers
        );
        assert_eq!(layers[2].thresholds(), [0.1, 0.2, 0.3, 0.4]);
    }

    #[test]
    fn thresholds_out_of_range_are_refused() {
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(check_layers(&[SparseMethod::Cats.layer(&[bad])], 1).is_err());
        }
        assert!(check_layers(&[LayerSparsity::Dense], 2).is_err());
        assert!(check_layers(&[], 2).is_ok());
    }
}
