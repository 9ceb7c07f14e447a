//! Readers of model files.
//!
//! [`Weights::open`] takes a Hugging Face folder, a GGUF file or a llama2.c checkpoint and gives all three one
//! face: a checked [`LlamaConfig`], tensors under Hugging Face's names, and a [`Tokenizer`]. Files are mapped,
//! not read; a tensor is decoded while it streams to the GPU ([`StoredTensor::convert`]).
//!
//! Nothing in a file is trusted: every error names the file, what is wrong and where, and no allocation is
//! larger than a small multiple of the file.
//!
//! ```text
//! hf.rs gguf.rs llama2c.rs   one format each: bytes -> Parsed
//! tokenizer.rs spm.rs        text <-> ids
//! tensor.rs                  stored elements -> f32, f16, bf16
//! source.rs                  mapped files, the bounds-checked reader
//! ```

mod gguf;
mod hf;
mod llama2c;
mod source;
mod spm;
mod tensor;
mod tokenizer;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use tensor::{Stored, StoredTensor};
pub use tokenizer::{TokenStream, Tokenizer};

use crate::error::{Error, Result};
use crate::kernels::rope::RopeScaling;
use crate::model::LlamaConfig;
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
    config: LlamaConfig,
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
    /// architecture other than Llama's, or contradicts itself.
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
            return hf::load(Folder::Disk(path.to_owned()), tokenizer).and_then(Self::check);
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
            return hf::load(Folder::Memory(blobs), None).and_then(Self::check);
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
            gguf::load(blob, tokenizer)
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
        parsed.and_then(Self::check)
    }

    /// Checks the tensors against the config: all there, each of its shape, none besides.
    fn check(parsed: Parsed) -> Result<Self> {
        let fail = |message: String| Err(Error::format(&parsed.path, message));
        let mut expected = BTreeSet::new();
        for (name, shape) in tensors_of(&parsed.config) {
            let Some(entry) = parsed.tensors.get(&name) else {
                return fail(format!(
                    "tensor {name} is missing, {shape:?} by the config{}",
                    near(&name, parsed.tensors.keys())
                ));
            };
            if entry.shape != shape {
                return fail(format!(
                    "tensor {name} is {:?}, by the config it is {shape:?}",
                    entry.shape
                ));
            }
            match entry.stored.bytes(&shape) {
                Ok(bytes) if bytes == entry.range.len() => {}
                Ok(bytes) => {
                    return fail(format!(
                        "tensor {name} has {} bytes, by its shape {bytes}",
                        entry.range.len()
                    ));
                }
                Err(message) => return fail(format!("tensor {name}: {message}")),
            }
            // One layer at a time is added only after all before were found, so a config with absurdly many
            // layers ends at the first that the file does not have.
            expected.insert(name);
        }
        if let Some((name, entry)) = parsed
            .tensors
            .iter()
            .find(|(name, _)| !expected.contains(*name))
        {
            return fail(format!(
                "tensor {name} {:?} is no part of a Llama of {} layers without biases",
                entry.shape, parsed.config.layers
            ));
        }
        Ok(Self(parsed))
    }

    /// The hyper-parameters, checked against the tensors.
    pub fn config(&self) -> &LlamaConfig {
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

/// Every tensor of a Llama, with its shape.
fn tensors_of(c: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (hidden, mlp) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let head =
        (!c.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![c.vocab_size, hidden]));
    let layers = (0..c.layers).flat_map(move |i| {
        [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![mlp, hidden]),
            ("mlp.up_proj", vec![mlp, hidden]),
            ("mlp.down_proj", vec![hidden, mlp]),
        ]
        .map(|(part, shape)| (format!("model.layers.{i}.{part}.weight"), shape))
    });
    std::iter::once((
        "model.embed_tokens.weight".to_owned(),
        vec![c.vocab_size, hidden],
    ))
    .chain(layers)
    .chain([("model.norm.weight".to_owned(), vec![hidden])])
    .chain(head)
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

/// Channels of a head where only the sum of all heads is given.
fn whole_heads(hidden_size: usize, heads: usize) -> Result<usize, String> {
    let dim = hidden_size
        .checked_div(heads)
        .filter(|dim| dim * heads == hidden_size);
    dim.ok_or_else(|| format!("{heads} heads do not divide the hidden size {hidden_size}"))
}

/// Checks a config for itself; after this, products of two of its sizes do not overflow 64 bits.
fn check_config(c: &LlamaConfig) -> Result<(), String> {
    const MAX: usize = i32::MAX as usize;
    for (name, value) in [
        ("vocab_size", c.vocab_size),
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("layers", c.layers),
        ("heads", c.heads),
        ("kv_heads", c.kv_heads),
        ("head_dim", c.head_dim),
        ("max_positions", c.max_positions),
        ("heads times head_dim", c.heads.saturating_mul(c.head_dim)),
    ] {
        if !(1..=MAX).contains(&value) {
            return Err(format!("{name} is {value}; allowed: 1 to {MAX}"));
        }
    }
    if c.kv_heads > c.heads || !c.heads.is_multiple_of(c.kv_heads) {
        return Err(format!(
            "{} key/value heads; allowed: a divisor of the {} heads",
            c.kv_heads, c.heads
        ));
    }
    if c.rope.dims == 0 || c.rope.dims % 2 != 0 || c.rope.dims > c.head_dim {
        return Err(format!(
            "RoPE turns {} channels of a head; allowed: an even number up to {}",
            c.rope.dims, c.head_dim
        ));
    }
    if !(c.rope.theta.is_finite() && c.rope.theta > 0.0) {
        return Err(format!(
            "RoPE's theta is {}; allowed: positive",
            c.rope.theta
        ));
    }
    if !(c.norm_eps.is_finite() && c.norm_eps >= 0.0) {
        return Err(format!(
            "the norm's epsilon is {}; allowed: finite, not negative",
            c.norm_eps
        ));
    }
    for &id in c.bos_token_id.iter().chain(&c.eos_token_ids) {
        if id as usize >= c.vocab_size {
            return Err(format!(
                "BOS or EOS is {id}; allowed: ids under the vocabulary's {}",
                c.vocab_size
            ));
        }
    }
    check_scaling(&c.rope.scaling)
}

fn check_scaling(scaling: &RopeScaling) -> Result<(), String> {
    let (factor, valid) = match *scaling {
        RopeScaling::None => (1.0, true),
        RopeScaling::Linear { factor } | RopeScaling::Ntk { factor } => (factor, true),
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            attention_factor,
        } => {
            let betas = beta_slow.is_finite() && beta_slow > 0.0 && beta_fast.is_finite();
            let attention = attention_factor.is_none_or(|a| a.is_finite() && a > 0.0);
            (
                factor,
                original_max_positions > 0 && betas && beta_fast > beta_slow && attention,
            )
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions,
        } => (
            factor,
            original_max_positions > 0 && low > 0.0 && high > low && high.is_finite(),
        ),
    };
    if valid && factor.is_finite() && factor >= 1.0 {
        return Ok(());
    }
    Err(format!(
        "RoPE scaling is {scaling:?}; allowed: finite positive parameters, a factor of at least 1"
    ))
}

#[cfg(test)]
mod tests;
