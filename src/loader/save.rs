//! Writing a Hugging Face folder again with its matrices quantised.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::{Dtype, View};

use super::Weights;
use super::hf::{FORMATS, Quantised};
use super::tensor::{Stored, finite};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::quant::{Clip, Format, clip, quantize};

/// The files that a folder has beside its tensors.
const OTHERS: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A tensor to be written.
struct Saved {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Saved {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// What [`quantize_folder`] wrote.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Matrices quantised.
    pub matrices: usize,
    /// Bytes of all tensors before.
    pub before: u64,
    /// And after.
    pub after: u64,
}

/// Writes the Llama of the Hugging Face folder `from` into the folder `to`, its matrices clipped and quantised: each as a tensor of
/// u32 words as [`QuantLayout`](crate::quant::QuantLayout) has them, its format and shape in the file's metadata under
/// `flashwave.formats`. The tensors are held in memory.
///
/// # Errors
/// [`Error::Argument`] if it is no such folder, if a number is not finite, or if the format is only read; [`Error::Io`].
pub fn quantize_folder(from: &Path, format: Format, how: Clip, to: &Path) -> Result<Written> {
    let weights = Weights::open(from)?;
    if !from.join(OTHERS[0]).is_file() || !matches!(weights.config(), ModelConfig::Llama(_)) {
        let was = from.display().to_string();
        return Err(Error::argument(
            "model",
            was,
            "a Hugging Face folder of a Llama",
        ));
    }
    let mut written = Written::default();
    let mut tensors = Vec::new();
    let mut formats = BTreeMap::new();
    for name in weights.names() {
        let tensor = weights.tensor(name)?;
        written.before += tensor.bytes().len() as u64;
        let saved = match (&tensor.shape[..], stored(tensor.stored)) {
            (&[rows, cols], Some(_)) => {
                let values = finite(name, tensor.to_f32()?)?;
                let values = clip(how, format, [rows, cols], &values)?;
                let matrix = quantize(format, [rows, cols], &values)?;
                let quantised = Quantised {
                    format: format.to_string(),
                    shape: vec![rows, cols],
                };
                formats.insert(name, quantised);
                written.matrices += 1;
                Saved {
                    dtype: Dtype::U32,
                    shape: vec![matrix.words().len()],
                    bytes: bytemuck::cast_slice(matrix.words()).to_vec(),
                }
            }
            (shape, Some(dtype)) => Saved {
                dtype,
                shape: shape.to_vec(),
                bytes: tensor.bytes().to_vec(),
            },
            (_, None) => {
                let was = format!("{:?}", tensor.stored);
                return Err(Error::argument(
                    format!("tensor {name}"),
                    was,
                    "F32, F16 or BF16",
                ));
            }
        };
        written.after += saved.bytes.len() as u64;
        tensors.push((name.to_owned(), saved));
    }
    let listed = serde_json::to_string(&formats)
        .map_err(|e| Error::argument("formats", e, "what JSON can say"))?;
    let metadata = HashMap::from([(FORMATS.to_owned(), listed), ("format".into(), "pt".into())]);
    std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    let path = to.join("model.safetensors");
    let views = tensors.iter().map(|(name, saved)| (name, saved));
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::format(&path, e.to_string()))?;
    std::fs::write(&path, bytes).map_err(|e| Error::io(&path, e))?;
    for name in OTHERS {
        let (source, target) = (from.join(name), to.join(name));
        if source.is_file() && source != target {
            std::fs::copy(&source, &target).map_err(|e| Error::io(&target, e))?;
        }
    }
    Ok(written)
}

fn stored(stored: Stored) -> Option<Dtype> {
    match stored {
        Stored::F32 => Some(Dtype::F32),
        Stored::F16 => Some(Dtype::F16),
        Stored::BF16 => Some(Dtype::BF16),
        Stored::Gguf(_) | Stored::Quant(_) => None,
    }
}
