//! GGUF, versions 1 to 3, little-endian: a header of key/value metadata, tensor descriptions, then aligned
//! tensor data. Read by an own parser: it hands out borrowed strings and unread arrays, so what it allocates
//! is bounded by what the file holds (the crates looked at, candle's and gguf-rs, allocate by the counts that
//! the header claims), and a wrong byte is reported with its position.
//!
//! Tensors of the `llama` architecture keep their RoPE channels in interleaved pairs; they are given Hugging
//! Face's names but not its channel order, which [`RopeLayout::Interleaved`] tells.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fmt::Display;

use super::source::{Blob, Reader};
use super::spm::{Kind, Piece, SpacePrefix, SpecialsInText};
use super::tensor::{Stored, StoredTensor};
use super::tokenizer::Tokenizer;
use super::{Entry, Parsed};
use crate::error::{Error, Result};
use crate::kernels::rope::{RopeConfig, RopeLayout, RopeScaling};
use crate::model::LlamaConfig;

/// First bytes of every GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";

pub(super) fn load(blob: Blob, tokenizer: Option<Blob>) -> Result<Parsed> {
    let (meta, mut tensors) = parse(&blob)?;
    let mut config = meta.config(&tensors)?;
    if let Some(entry) = tensors.remove("rope_freqs.weight") {
        config.rope.scaling = scaling_of_factors(&blob, &entry, &config.rope)?;
    }
    super::check_config(&config).map_err(|message| blob.error(message))?;
    let tokenizer = match tokenizer {
        Some(blob) => Some(Tokenizer::parse(&blob, config.vocab_size)?),
        None => meta.tokenizer(&config)?,
    };
    drop(meta);
    Ok(Parsed {
        path: blob.path.clone(),
        config,
        tensors,
        files: vec![blob],
        tokenizer,
    })
}

/// A metadata value; arrays are walked, and read when asked for.
enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Str(&'a str),
    Array {
        kind: u32,
        count: u64,
        items: Cursor<'a>,
    },
}

/// The reader and the version, on which the width of lengths depends.
#[derive(Clone)]
struct Cursor<'a> {
    reader: Reader<'a>,
    version: u32,
}

impl<'a> Cursor<'a> {
    /// A length or count: 32 bits in version 1, 64 since.
    fn length(&mut self, what: &str) -> Result<u64> {
        if self.version == 1 {
            self.reader.u32(what).map(u64::from)
        } else {
            self.reader.u64(what)
        }
    }

    fn str(&mut self, what: &str) -> Result<&'a str> {
        let length = self.length(what)?;
        self.reader.str(length, what)
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value<'a>> {
        let start = self.reader.clone();
        let mut take = |n| self.reader.take(n, "a metadata value");
        let signed = |b: &[u8]| {
            // Sign-extended from the top byte.
            let fill = if b.last().is_some_and(|&b| b >= 0x80) {
                0xff
            } else {
                0
            };
            i64::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(fill)))
        };
        let unsigned =
            |b: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(0)));
        Ok(match kind {
            0 => Value::Unsigned(unsigned(take(1)?)),
            1 => Value::Signed(signed(take(1)?)),
            2 => Value::Unsigned(unsigned(take(2)?)),
            3 => Value::Signed(signed(take(2)?)),
            4 => Value::Unsigned(unsigned(take(4)?)),
            5 => Value::Signed(signed(take(4)?)),
            6 => Value::Float(self.reader.f32("a metadata value")?.into()),
            7 => match take(1)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                other => {
                    return Err(
                        start.error(format_args!("a boolean is {other:?}; allowed: 0 or 1"))
                    );
                }
            },
            8 => Value::Str(self.str("a metadata string")?),
            9 => self.array(depth)?,
            10 => Value::Unsigned(unsigned(take(8)?)),
            11 => Value::Signed(signed(take(8)?)),
            12 => Value::Float(f64::from_bits(unsigned(take(8)?))),
            _ => return Err(start.error(format_args!("metadata type {kind}; allowed: 0 to 12"))),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Value<'a>> {
        if depth == 4 {
            return Err(self.reader.error("arrays nested more than 4 deep"));
        }
        let kind = self.reader.u32("an array's element type")?;
        let count = self.length("an array's length")?;
        let items = self.clone();
        let width = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        match width {
            Some(width) => {
                self.reader.take(count.saturating_mul(width), "an array")?;
            }
            // Every element takes bytes of the file, so the end of the file ends a lying count.
            None => {
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
            }
        }
        Ok(Value::Array { kind, count, items })
    }
}

/// The metadata of a file.
struct Meta<'a> {
    blob: &'a Blob,
    values: BTreeMap<&'a str, Value<'a>>,
}

/// Reads the header: metadata, and where each tensor lies under its Hugging Face name.
fn parse(blob: &Blob) -> Result<(Meta<'_>, BTreeMap<String, Entry>)> {
    let mut cursor = Cursor {
        reader: blob.reader(),
        version: 0,
    };
    if cursor.reader.take(4, "the magic number")? != MAGIC {
        return Err(blob.error("does not begin with 'GGUF'"));
    }
    cursor.version = cursor.reader.u32("the version")?;
    if !matches!(cursor.version, 1..=3) {
        return Err(blob.error(format!(
            "GGUF version {:#x}; allowed: 1 to 3, little-endian",
            cursor.version
        )));
    }
    let tensor_count = cursor.length("the number of tensors")?;
    let value_count = cursor.length("the number of metadata values")?;
    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let start = cursor.reader.clone();
        let key = cursor.str("a metadata key")?;
        let kind = cursor.reader.u32("a metadata type")?;
        if values.insert(key, cursor.value(kind, 0)?).is_some() {
            return Err(start.error(format_args!("the key {key} comes twice")));
        }
    }
    let meta = Meta { blob, values };

    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let start = cursor.reader.clone();
        let (name, entry) = tensor(&mut cursor)?;
        if tensors.insert(hugging_face_name(name), entry).is_some() {
            return Err(start.error(format_args!("the tensor {name} comes twice")));
        }
    }
    let alignment = meta.unsigned("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() {
        return Err(blob.error(format!(
            "general.alignment is {alignment}; allowed: powers of two"
        )));
    }
    let end = cursor.reader.position() as u64;
    let data = end
        .checked_next_multiple_of(alignment)
        .and_then(|at| usize::try_from(at).ok());
    place(blob, &mut tensors, data, alignment)?;
    Ok((meta, tensors))
}

/// One tensor's description; its range is still relative to the data section.
fn tensor<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, Entry)> {
    let name = cursor.str("a tensor's name")?;
    let start = cursor.reader.clone();
    let fail = |message: &dyn Display| start.error(format_args!("tensor {name}: {message}"));
    let rank = cursor.reader.u32("a tensor's rank")?;
    if !(1..=4).contains(&rank) {
        return Err(fail(&format_args!("{rank} dimensions; allowed: 1 to 4")));
    }
    // GGUF writes the fastest dimension first.
    let mut shape = Vec::with_capacity(4);
    for _ in 0..rank {
        let dim = cursor.length("a tensor's dimension")?;
        let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0);
        shape.insert(
            0,
            dim.ok_or_else(|| fail(&"a dimension that is zero or over the address space"))?,
        );
    }
    let stored = match cursor.reader.u32("a tensor's type")? {
        0 => Stored::F32,
        1 => Stored::F16,
        2 => Stored::Q4_0,
        8 => Stored::Q8_0,
        30 => Stored::BF16,
        other => {
            let message = format_args!(
                "ggml type {other}; allowed: 0 (F32), 1 (F16), 2 (Q4_0), 8 (Q8_0), 30 (BF16)"
            );
            return Err(fail(&message));
        }
    };
    let offset = cursor.reader.u64("a tensor's offset")?;
    let size = stored.bytes(&shape).map_err(|message| fail(&message))?;
    let range = usize::try_from(offset)
        .ok()
        .and_then(|from| Some(from..from.checked_add(size)?));
    let range =
        range.ok_or_else(|| fail(&format_args!("{size} bytes at offset {offset} overflow")))?;
    Ok((
        name,
        Entry {
            stored,
            shape,
            file: 0,
            range,
        },
    ))
}

/// Turns offsets into ranges of the file, which must be aligned, inside it and apart.
fn place(
    blob: &Blob,
    tensors: &mut BTreeMap<String, Entry>,
    data: Option<usize>,
    alignment: u64,
) -> Result<()> {
    for (name, entry) in tensors.iter_mut() {
        let range = entry.range.clone();
        if range.start as u64 % alignment != 0 {
            return Err(blob.error(format!(
                "tensor {name} is at offset {}, not a multiple of the alignment {alignment}",
                range.start
            )));
        }
        let moved = data
            .and_then(|data| Some(range.start.checked_add(data)?..range.end.checked_add(data)?));
        entry.range = moved.filter(|range| range.end <= blob.len()).ok_or_else(|| {
            blob.error(format!(
                "tensor {name} is at {range:?} of the data section, past the end of the file ({} bytes)",
                blob.len()
            ))
        })?;
    }
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, entry)| entry.range.start);
    for pair in order.windows(2) {
        if let [(before, a), (after, b)] = pair
            && a.range.end > b.range.start
        {
            return Err(blob.error(format!(
                "tensors {before} at bytes {:?} and {after} at {:?} overlap",
                a.range, b.range
            )));
        }
    }
    Ok(())
}

/// The Hugging Face name of a `llama` tensor; a name that has none is kept, and refused later.
fn hugging_face_name(name: &str) -> String {
    let renamed = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => Some("model.norm.weight".to_owned()),
        "output.weight" => Some("lm_head.weight".to_owned()),
        _ => name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(layer, part)| {
                let part = match part.strip_suffix(".weight")? {
                    "attn_norm" => "input_layernorm",
                    "attn_q" => "self_attn.q_proj",
                    "attn_k" => "self_attn.k_proj",
                    "attn_v" => "self_attn.v_proj",
                    "attn_output" => "self_attn.o_proj",
                    "ffn_norm" => "post_attention_layernorm",
                    "ffn_gate" => "mlp.gate_proj",
                    "ffn_up" => "mlp.up_proj",
                    "ffn_down" => "mlp.down_proj",
                    _ => return None,
                };
                Some(format!("model.layers.{layer}.{part}.weight"))
            }),
    };
    renamed.unwrap_or_else(|| name.to_owned())
}

impl<'a> Meta<'a> {
    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        Err(self.blob.error(format!("metadata {key} is not {expected}")))
    }

    fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(value.unsigned_abs())),
            Some(_) => self.wrong(key, "a non-negative integer"),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = self.unsigned(key)?.map(usize::try_from).transpose();
        size.or_else(|_| self.wrong(key, "within the address space"))
    }

    fn id(&self, key: &str) -> Result<Option<u32>> {
        self.unsigned(key)?
            .map(u32::try_from)
            .transpose()
            .or_else(|_| self.wrong(key, "a token id"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(_) => self.wrong(key, "a floating-point number"),
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => self.wrong(key, "a boolean"),
        }
    }

    fn str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Str(value)) => Ok(Some(value)),
            Some(_) => self.wrong(key, "a string"),
        }
    }

    /// An array of one of these element types. Its bytes have been walked, so its count is honest.
    fn array<T>(
        &self,
        key: &str,
        kinds: &[u32],
        mut item: impl FnMut(&mut Cursor<'a>) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, count, items }) if kinds.contains(kind) => {
                let mut items = items.clone();
                (0..*count)
                    .map(|_| item(&mut items))
                    .collect::<Result<Vec<T>>>()
                    .map(Some)
            }
            Some(_) => self.wrong(key, &format!("an array of elements of type {kinds:?}")),
        }
    }

    fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.blob.error(format!("metadata {key} is missing")))
    }

    fn config(&self, tensors: &BTreeMap<String, Entry>) -> Result<LlamaConfig> {
        let architecture = self.need("general.architecture", self.str("general.architecture")?)?;
        if architecture != "llama" {
            return Err(self.blob.error(format!(
                "general.architecture is '{architecture}'; allowed: llama"
            )));
        }
        let size = |key: &str| self.need(key, self.size(key)?);
        if let Some(experts) = self.unsigned("llama.expert_count")?.filter(|&n| n > 0) {
            return Err(self
                .blob
                .error(format!("llama.expert_count is {experts}; allowed: none")));
        }
        let hidden_size = size("llama.embedding_length")?;
        let heads = size("llama.attention.head_count")?;
        let head_dim = match self.size("llama.attention.key_length")? {
            Some(dim) => dim,
            None => super::whole_heads(hidden_size, heads)
                .map_err(|message| self.blob.error(message))?,
        };
        if let Some(value) = self
            .size("llama.attention.value_length")?
            .filter(|&v| v != head_dim)
        {
            return Err(self.blob.error(format!(
                "llama.attention.value_length is {value}; allowed: the key length, {head_dim}"
            )));
        }
        let max_positions = size("llama.context_length")?;
        let embedding = tensors.get("model.embed_tokens.weight");
        let rows = embedding.and_then(|entry| entry.shape.first().copied());
        let eps = "llama.attention.layer_norm_rms_epsilon";
        let starts = self.bool("tokenizer.ggml.add_bos_token")? != Some(false);
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let mut eos_token_ids = Vec::new();
        for id in ends.map(|key| self.id(key)) {
            eos_token_ids.extend(id?.filter(|id| !eos_token_ids.contains(id)));
        }
        Ok(LlamaConfig {
            vocab_size: self.need("llama.vocab_size", self.size("llama.vocab_size")?.or(rows))?,
            hidden_size,
            intermediate_size: size("llama.feed_forward_length")?,
            layers: size("llama.block_count")?,
            heads,
            kv_heads: self.size("llama.attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            max_positions,
            norm_eps: self.need(eps, self.float(eps)?)? as f32,
            rope: RopeConfig {
                theta: self.float("llama.rope.freq_base")?.unwrap_or(10000.0),
                dims: self.size("llama.rope.dimension_count")?.unwrap_or(head_dim),
                layout: RopeLayout::Interleaved,
                scaling: self.scaling(max_positions)?,
            },
            tie_word_embeddings: !tensors.contains_key("lm_head.weight"),
            bos_token_id: self.id("tokenizer.ggml.bos_token_id")?.filter(|_| starts),
            eos_token_ids,
        })
    }

    fn scaling(&self, max_positions: usize) -> Result<RopeScaling> {
        let old = self.float("llama.rope.scale_linear")?;
        let factor = self
            .float("llama.rope.scaling.factor")?
            .or(old)
            .unwrap_or(1.0);
        let default = if old.is_some() { "linear" } else { "none" };
        Ok(
            match self.str("llama.rope.scaling.type")?.unwrap_or(default) {
                "none" => RopeScaling::None,
                "linear" => RopeScaling::Linear { factor },
                "yarn" => {
                    let original = self.size("llama.rope.scaling.original_context_length")?;
                    // llama.cpp multiplies the paper's factor by its own.
                    let attention = self.float("llama.rope.scaling.attn_factor")?;
                    RopeScaling::Yarn {
                        factor,
                        original_max_positions: u32::try_from(original.unwrap_or(max_positions))
                            .or_else(|_| {
                                self.wrong("llama.rope.scaling.original_context_length", "32 bits")
                            })?,
                        beta_fast: self
                            .float("llama.rope.scaling.yarn_beta_fast")?
                            .unwrap_or(32.0),
                        beta_slow: self
                            .float("llama.rope.scaling.yarn_beta_slow")?
                            .unwrap_or(1.0),
                        attention_factor: attention.map(|a| a * (0.1 * factor.ln() + 1.0)),
                    }
                }
                other => {
                    return Err(self.blob.error(format!(
                        "llama.rope.scaling.type is '{other}'; allowed: none, linear, yarn"
                    )));
                }
            },
        )
    }

    fn tokenizer(&self, config: &LlamaConfig) -> Result<Option<Tokenizer>> {
        let Some(model) = self.str("tokenizer.ggml.model")? else {
            return Ok(None);
        };
        let tokens = self.array("tokenizer.ggml.tokens", &[8], |c| c.str("a token"))?;
        let tokens = self.need("tokenizer.ggml.tokens", tokens)?;
        if tokens.len() != config.vocab_size {
            return Err(self.blob.error(format!(
                "tokenizer.ggml.tokens has {} tokens; the model's vocabulary is {}",
                tokens.len(),
                config.vocab_size
            )));
        }
        let types = self.array("tokenizer.ggml.token_type", &[4, 5], |c| {
            c.reader.u32("a token's type")
        })?;
        let kinds = (0..tokens.len()).map(|i| match types.as_ref().and_then(|t| t.get(i)) {
            Some(2 | 3) => Kind::Control,
            Some(4) => Kind::UserDefined,
            // Score models spell the byte; merges have their own alphabet of bytes.
            Some(6) | None if model == "llama" => Kind::of_spelling(tokens[i].as_bytes()),
            _ => Kind::Text,
        });
        let built = match model {
            "llama" => {
                let key = "tokenizer.ggml.scores";
                let scores = self.need(key, self.array(key, &[6], |c| c.reader.f32("a score"))?)?;
                if scores.len() != tokens.len() {
                    return self.wrong(key, "as long as tokenizer.ggml.tokens");
                }
                let pieces = tokens
                    .iter()
                    .zip(scores)
                    .zip(kinds)
                    .map(|((token, score), kind)| {
                        // SentencePiece writes the space as U+2581.
                        Piece {
                            text: token.replace('\u{2581}', " ").into(),
                            score,
                            kind,
                        }
                    });
                let prefix = match self.bool("tokenizer.ggml.add_space_prefix")? {
                    Some(false) => SpacePrefix::None,
                    _ => SpacePrefix::Add,
                };
                let bos = self.id("tokenizer.ggml.bos_token_id")?;
                let unknown = self.id("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
                Tokenizer::from_scores(
                    pieces.collect(),
                    bos,
                    unknown,
                    prefix,
                    SpecialsInText::Recognised,
                )
            }
            "gpt2" => {
                let key = "tokenizer.ggml.merges";
                let merges = self.need(key, self.array(key, &[8], |c| c.str("a merge"))?)?;
                let pieces: Vec<_> = tokens.iter().copied().zip(kinds).collect();
                let pre = self.str("tokenizer.ggml.pre")?.unwrap_or("default");
                Tokenizer::from_merges(&pieces, &merges, pre)
            }
            other => Err(format!(
                "tokenizer.ggml.model is '{other}'; allowed: llama, gpt2"
            )),
        };
        built
            .map(Some)
            .map_err(|message| self.blob.error(format!("tokenizer: {message}")))
    }
}

/// llama.cpp's converter writes Llama 3's scaling as the factors themselves. The published models share all
/// parameters but the factor, which is the largest; anything else is refused.
fn scaling_of_factors(blob: &Blob, entry: &Entry, rope: &RopeConfig) -> Result<RopeScaling> {
    let bytes = blob.get(entry.range.clone()).unwrap_or_default();
    let tensor = StoredTensor {
        name: "rope_freqs.weight",
        stored: entry.stored,
        shape: entry.shape.clone(),
        bytes,
    };
    let factors = tensor.to_f32()?;
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let (low, high, original) = (1.0, 4.0, 8192u32);
    let agrees = factors.len() == rope.dims / 2
        && factors.iter().enumerate().all(|(i, &given)| {
            let rotations =
                f64::from(original) * rope.theta.powf(-2.0 * i as f64 / rope.dims as f64) / TAU;
            let smooth = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
            let expected = 1.0 / ((1.0 - smooth) / f64::from(factor) + smooth);
            (f64::from(given) - expected).abs() <= 1e-3 * expected
        });
    match agrees {
        true if factor == 1.0 => Ok(RopeScaling::None),
        true => Ok(RopeScaling::Llama3 {
            factor: factor.into(),
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: original,
        }),
        false => Err(Error::format(
            &blob.path,
            "tensor rope_freqs.weight is not Llama 3's scaling (low 1, high 4, original context 8192)",
        )),
    }
}
