//! Readers of model files.
//!
//! [`Weights::open`] takes a Hugging Face folder, a GGUF file or a llama2.c checkpoint and gives all three one
//! face: a checked [`ModelConfig`], tensors under Hugging Face's names, and a [`Tokenizer`]. Files are mapped,
//! not read; a tensor is decoded while it streams to the GPU ([`StoredTensor::convert`]).
//!
//! Nothing in a file is trusted: every error names the file, what is wrong and where, and no allocation is
//! larger than a small multiple of the file.
//!
//! ```text
//! hf.rs gguf.rs gguf_llama.rs llama2c.rs   one format each: bytes -> Parsed
//! packed.rs                                GPTQ's and AWQ's matrices of a Hugging Face folder
//! save.rs                                  a Hugging Face folder written again, quantised
//! check.rs                                 a config against itself and against the tensors
//! tokenizer.rs spm.rs stream.rs            text <-> ids
//! tensor.rs                                stored elements -> f32, f16, bf16
//! source.rs                                mapped files, the bounds-checked reader
//! ```

mod check;
mod gguf;
mod gguf_llama;
mod hf;
mod llama2c;
mod packed;
#[cfg(not(target_arch = "wasm32"))]
mod save;
mod source;
mod spm;
mod stream;
mod tensor;
mod tokenizer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

#[cfg(not(target_arch = "wasm32"))]
pub use save::{Written, quantize_folder};
pub use stream::TokenStream;
pub(crate) use tensor::finite;
pub use tensor::{Stored, StoredTensor};
pub use tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::model::ModelConfig;
use source::{Blob, Folder};

/// Where one tensor lies.
struct Entry {
    stored: Stored,
    shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

/// What a format's reader found, before it is checked against itself.
struct Parsed {
    path: PathBuf,
    config: ModelConfig,
    tensors: BTreeMap<String, Entry>,
    files: Vec<Blob>,
    tokenizer: Option<Tokenizer>,
}

/// An open model: memory maps, an index of tensors, the config and the tokenizer; no decoded weights.
pub struct Weights(Parsed);

impl Weights {
    /// Opens a Hugging Face folder, a `.gguf` file or a llama2.c `.bin`: decided by what it is, not by its
    /// name. The files are mapped and must not be changed while this value lives.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read; [`Error::Format`] where it is malformed, is of an
    /// architecture other than Llama's or Hyena's, or contradicts itself.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with_tokenizer(path, None)
    }

    /// As [`open`](Self::open), with a tokenizer from a file of its own: llama2.c's `tokenizer.bin` or a
    /// `tokenizer.json`. It replaces the model's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open_with_tokenizer(path: impl AsRef<Path>, tokenizer: Option<&Path>) -> Result<Self> {
        let path = path.as_ref();
        let tokenizer = tokenizer.map(Blob::map).transpose()?;
        if path.is_dir() {
            return hf::load(Folder::Disk(path.to_owned()), tokenizer).and_then(Self::checked);
        }
        Self::from_file(Blob::map(path)?, tokenizer)
    }

    /// Opens a model from memory: the files of a Hugging Face folder under their names, or a GGUF file or
    /// llama2.c checkpoint followed, optionally, by its tokenizer's file. `Vec<u8>` and `&'static [u8]`
    /// (models embedded in the program, which are not copied) both serve as contents.
    ///
    /// # Errors
    /// As [`open`](Self::open), naming the files as given.
    pub fn from_bytes<B: Into<Cow<'static, [u8]>>>(files: Vec<(String, B)>) -> Result<Self> {
        let mut blobs: Vec<_> = files
            .into_iter()
            .map(|(name, bytes)| Blob::memory(name, bytes))
            .collect();
        if blobs
            .iter()
            .any(|blob| blob.path == Path::new("config.json"))
        {
            return hf::load(Folder::Memory(blobs), None).and_then(Self::checked);
        }
        let tokenizer = (blobs.len() == 2).then(|| blobs.pop()).flatten();
        match (blobs.pop(), blobs.len()) {
            (Some(model), 0) => Self::from_file(model, tokenizer),
            (_, more) => Err(Error::argument(
                "files",
                if more == 0 {
                    "none".to_owned()
                } else {
                    format!("{} without config.json", more + 1)
                },
                "a Hugging Face folder's files, or a model file and at most one tokenizer file",
            )),
        }
    }

    fn from_file(blob: Blob, tokenizer: Option<Blob>) -> Result<Self> {
        let parsed = if blob.starts_with(gguf::MAGIC) {
            gguf_llama::load(blob, tokenizer)
        } else if blob.path.extension().is_some_and(|e| e == "gguf") {
            Err(blob.error("does not begin with 'GGUF'"))
        } else if blob
            .path
            .extension()
            .is_some_and(|e| e == "safetensors" || e == "json")
        {
            Err(blob.error("one file of a Hugging Face model; open the folder that holds it"))
        } else {
            llama2c::load(blob, tokenizer)
        };
        parsed.and_then(Self::checked)
    }

    fn checked(parsed: Parsed) -> Result<Self> {
        check::tensors(&parsed)?;
        Ok(Self(parsed))
    }

    /// The hyper-parameters, checked against the tensors.
    pub fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    /// The tokenizer, where the model has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer.as_ref()
    }

    /// All tensors by their Hugging Face names, whatever the format: `model.embed_tokens.weight`,
    /// `model.layers.{i}.self_attn.q_proj.weight`, …, `model.norm.weight`, and `lm_head.weight` unless tied.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.tensors.keys().map(String::as_str)
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that is not there, with those nearest to it.
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>> {
        let found = self
            .0
            .tensors
            .get_key_value(name)
            .and_then(|(name, entry)| {
                let bytes = self.0.files.get(entry.file)?.get(entry.range.clone())?;
                Some(StoredTensor {
                    name,
                    stored: entry.stored,
                    shape: entry.shape.clone(),
                    bytes,
                })
            });
        found.ok_or_else(|| {
            let near = near(name, self.0.tensors.keys());
            Error::argument(
                "tensor",
                name,
                format!("the tensors of {}{near}", self.0.path.display()),
            )
        })
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.0.path)
            .field("config", &self.0.config)
            .field("tensors", &self.0.tensors.len())
            .field("tokenizer", &self.0.tokenizer)
            .finish()
    }
}

/// ` (near: …)`: the three names that share the most of their beginning and end with `name`.
fn near<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> String {
    let same = |pair: &(u8, u8)| pair.0 == pair.1;
    let mut scored: Vec<_> = names
        .map(|other| {
            let front = name.bytes().zip(other.bytes()).take_while(same).count();
            let back = name
                .bytes()
                .rev()
                .zip(other.bytes().rev())
                .take_while(same)
                .count();
            (std::cmp::Reverse(front + back), other.as_str())
        })
        .collect();
    scored.sort_unstable();
    let nearest: Vec<_> = scored.into_iter().take(3).map(|(_, other)| other).collect();
    if nearest.is_empty() {
        String::new()
    } else {
        format!(" (near: {})", nearest.join(", "))
    }
}

#[cfg(test)]
mod tests;
