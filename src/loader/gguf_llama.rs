//! What GGUF's `llama` architecture means: config, tensor names and tokenizer.
//!
//! Its tensors keep their RoPE channels in interleaved pairs; they are given Hugging Face's names but not its
//! channel order, which [`RopeLayout::Interleaved`] tells.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use super::gguf::{Meta, parse};
use super::source::Blob;
use super::spm::{Kind, Piece, SpacePrefix, SpecialsInText};
use super::tensor::StoredTensor;
use super::tokenizer::Tokenizer;
use super::{Entry, Parsed, check};
use crate::error::{Error, Result};
use crate::kernels::rope::{RopeConfig, RopeLayout, RopeScaling};
use crate::model::{LlamaConfig, ModelConfig};

pub(super) fn load(blob: Blob, tokenizer: Option<Blob>) -> Result<Parsed> {
    let (meta, mut tensors) = parse(&blob, hugging_face_name)?;
    let mut config = meta.config(&tensors)?;
    if let Some(entry) = tensors.remove("rope_freqs.weight") {
        config.rope.scaling = scaling_of_factors(&blob, &entry, &config.rope)?;
    }
    check::llama(&config).map_err(|message| blob.error(message))?;
    let tokenizer = match tokenizer {
        Some(blob) => Some(Tokenizer::parse(&blob, config.vocab_size)?),
        None => meta.tokenizer(&config)?,
    };
    drop(meta);
    Ok(Parsed {
        path: blob.path.clone(),
        config: ModelConfig::Llama(config),
        tensors,
        files: vec![blob],
        tokenizer,
    })
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

impl Meta<'_> {
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
            None => check::whole_heads(hidden_size, heads)
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
            attention: Vec::new(),
            sparsity: Vec::new(),
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
