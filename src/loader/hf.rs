//! Hugging Face model folders: `config.json`, `model.safetensors` or the shards that
//! `model.safetensors.index.json` lists, and `tokenizer.json` if there is one.

use std::collections::{BTreeMap, HashMap};
use std::panic::catch_unwind;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::packed::{Packing, QuantizationConfig, Words};
use super::source::{Blob, Folder};
use super::tensor::Stored;
use super::tokenizer::Tokenizer;
use super::{Entry, Parsed, check};
use crate::error::{Error, Result};
use crate::kernels::rope::{RopeConfig, RopeLayout, RopeScaling};
use crate::model::{FilterConfig, HyenaConfig, LlamaConfig, ModelConfig};

/// Reads the folder; `tokenizer` replaces its own.
pub(super) fn load(mut folder: Folder, tokenizer: Option<Blob>) -> Result<Parsed> {
    let Some(blob) = folder.take("config.json")? else {
        return Err(Error::format(
            folder.path(),
            "no config.json: not a Hugging Face model folder",
        ));
    };
    let (mut config, tied, packing) = read_config(&blob)?;
    check::config(&config).map_err(|message| blob.error(message))?;

    let Found {
        mut files,
        mut tensors,
        words,
    } = load_tensors(&mut folder)?;
    match (packing, words.first_key_value()) {
        (Some(packing), _) => packing.unpack(&mut files, &mut tensors, words)?,
        (None, Some((name, of))) => {
            return Err(files[of.file].error(format!(
                "tensor {name} is I32; allowed: F32, F16, BF16, U32 with its format in the metadata, or I32 with a \
                 quantization_config"
            )));
        }
        (None, None) => {}
    }
    // Tied models may store the output projection too: it is the embedding. Without a word in the config the
    // files decide; where the config says "untied", the check that follows misses the tensor.
    let tied = tied.unwrap_or(!tensors.contains_key("lm_head.weight"));
    match &mut config {
        ModelConfig::Llama(c) => c.tie_word_embeddings = tied,
        ModelConfig::Hyena(c) => c.tie_word_embeddings = tied,
    }
    if tied {
        tensors.remove("lm_head.weight");
    }
    // Constants that old checkpoints store beside the weights.
    tensors.retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));

    let tokenizer = match tokenizer {
        Some(blob) => Some(blob),
        None => folder.take("tokenizer.json")?,
    };
    let tokenizer = tokenizer
        .map(|blob| Tokenizer::parse(&blob, config.vocab_size()))
        .transpose()?;
    Ok(Parsed {
        path: folder.path().to_owned(),
        config,
        tensors,
        files,
        tokenizer,
    })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What a folder's files hold.
#[derive(Default)]
struct Found {
    files: Vec<Blob>,
    tensors: BTreeMap<String, Entry>,
    /// Tensors of I32: parts of packed matrices.
    words: BTreeMap<String, Words>,
}

fn load_tensors(folder: &mut Folder) -> Result<Found> {
    let mut all = Found::default();
    if let Some(blob) = folder.take("model.safetensors")? {
        (all.tensors, all.words) = header(&blob, 0)?;
        all.files.push(blob);
    } else if let Some(index) = folder.take("model.safetensors.index.json")? {
        let map: Index = serde_json::from_slice(&index)
            .map_err(|e| index.error(format!("not a shard index: {e}")))?;
        let mut shards = BTreeMap::<String, Vec<String>>::new();
        for (tensor, shard) in map.weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        for (shard, names) in shards {
            // The index must not reach outside its folder.
            if Path::new(&shard).file_name() != Some(shard.as_ref()) {
                return Err(index.error(format!("shard '{shard}' is not a plain file name")));
            }
            let Some(blob) = folder.take(&shard)? else {
                return Err(index.error(format!("shard '{shard}' is missing from the folder")));
            };
            let (mut found, mut words) = header(&blob, all.files.len())?;
            for name in names {
                if let Some(entry) = found.remove(&name) {
                    all.tensors.insert(name, entry);
                } else if let Some(entry) = words.remove(&name) {
                    all.words.insert(name, entry);
                } else {
                    return Err(blob.error(format!(
                        "tensor {name} is missing, which the index places here"
                    )));
                }
            }
            all.files.push(blob);
        }
    } else {
        return Err(Error::format(
            folder.path(),
            "neither model.safetensors nor model.safetensors.index.json",
        ));
    }
    Ok(all)
}

type Header = (BTreeMap<String, Entry>, BTreeMap<String, Words>);

/// The tensors of one safetensors file.
fn header(blob: &Blob, file: usize) -> Result<Header> {
    if blob.is_empty() {
        return Err(blob.error("the file is empty; expected safetensors"));
    }
    // The library checks types, sizes and that the tensors follow one another without holes; caught, because
    // adding up offsets near 2^64 overflows there (safetensors 0.8), and the ranges are checked again below.
    let (length, metadata) = catch_unwind(|| SafeTensors::read_metadata(blob))
        .map_err(|_| blob.error("safetensors header: offsets overflow"))?
        .map_err(|e| blob.error(format!("safetensors header: {e}")))?;
    let formats = formats(blob, metadata.metadata())?;
    let (mut tensors, mut words) = (BTreeMap::new(), BTreeMap::new());
    for (name, info) in metadata.tensors() {
        let mut shape = info.shape.clone();
        let stored = match info.dtype {
            Dtype::I32 => None,
            Dtype::U32 if formats.contains_key(&name) => {
                let quantised = &formats[&name];
                let format = quantised.format.parse();
                let format = format.map_err(|e| blob.error(format!("tensor {name}: {e}")))?;
                shape = quantised.shape.clone();
                let stored = Stored::Quant(format);
                let bytes = stored.bytes(&shape);
                let bytes = bytes.map_err(|e| blob.error(format!("tensor {name}: {e}")))?;
                let words: usize = info.shape.iter().product();
                if words.checked_mul(4) != Some(bytes) {
                    return Err(blob.error(format!(
                        "tensor {name} has {words} words; {} {shape:?} has {}",
                        quantised.format,
                        bytes / 4
                    )));
                }
                Some(stored)
            }
            Dtype::F32 => Some(Stored::F32),
            Dtype::F16 => Some(Stored::F16),
            Dtype::BF16 => Some(Stored::BF16),
            other => {
                return Err(blob.error(format!(
                    "tensor {name} is {other:?}; allowed: F32, F16, BF16, or U32 with its format in the metadata"
                )));
            }
        };
        let data = length + 8;
        let (start, end) = info.data_offsets;
        let range = start
            .checked_add(data)
            .zip(end.checked_add(data))
            .map(|(start, end)| start..end);
        let range = range
            .filter(|r| blob.get(r.clone()).is_some())
            .ok_or_else(|| {
                blob.error(format!(
                    "tensor {name} lies at {start}..{end}, past the end of the file"
                ))
            })?;
        match stored {
            Some(stored) => {
                let entry = Entry {
                    stored,
                    shape,
                    file,
                    range,
                };
                tensors.insert(name, entry);
            }
            None => {
                words.insert(name, Words { shape, file, range });
            }
        }
    }
    Ok((tensors, words))
}

/// What the metadata say of a quantised tensor.
#[derive(Deserialize, Serialize)]
pub(super) struct Quantised {
    pub format: String,
    pub shape: Vec<usize>,
}

/// The key of the metadata under which quantised tensors are listed, as JSON.
pub(super) const FORMATS: &str = "flashwave.formats";

fn formats(
    blob: &Blob,
    metadata: &Option<HashMap<String, String>>,
) -> Result<BTreeMap<String, Quantised>> {
    let Some(text) = metadata.as_ref().and_then(|m| m.get(FORMATS)) else {
        return Ok(BTreeMap::new());
    };
    serde_json::from_str(text).map_err(|e| blob.error(format!("metadata {FORMATS}: {e}")))
}

/// What every config says first.
#[derive(Deserialize)]
struct Architecture {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

/// The config, whether it says that the output projection is the embedding table, and how matrices are packed.
fn read_config(blob: &Blob) -> Result<(ModelConfig, Option<bool>, Option<Packing>)> {
    let what: Architecture = serde_json::from_slice(blob)
        .map_err(|e| blob.error(format!("not a model's config: {e}")))?;
    let first = what.architectures.as_ref().and_then(|names| names.first());
    let name = first.or(what.model_type.as_ref());
    if name.is_some_and(|name| ["HyenaForCausalLM", "hyena"].contains(&&**name)) {
        let raw: RawHyena = serde_json::from_slice(blob)
            .map_err(|e| blob.error(format!("not a Hyena config: {e}")))?;
        let tied = raw.tie_word_embeddings;
        let config = raw.read().map_err(|message| blob.error(message))?;
        return Ok((ModelConfig::Hyena(config), tied, None));
    }
    let mut raw: Config =
        serde_json::from_slice(blob).map_err(|e| blob.error(format!("not a Llama config: {e}")))?;
    let tied = raw.tie_word_embeddings;
    let packing = raw.quantization_config.take();
    let packing = packing.map(QuantizationConfig::read).transpose();
    let packing = packing.map_err(|message| blob.error(message))?;
    let config = raw.read().map_err(|message| blob.error(message))?;
    Ok((ModelConfig::Llama(config), tied, packing))
}

/// A Hyena's `config.json` as tools/train/hyena.py writes it.
#[derive(Deserialize)]
struct RawHyena {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    short_filter_size: usize,
    filter_order: usize,
    filter_emb_dim: usize,
    filter_inner_layers: usize,
    filter_sine_frequency: f64,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

impl RawHyena {
    fn read(self) -> Result<HyenaConfig, String> {
        silu(self.hidden_act.as_deref())?;
        Ok(HyenaConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            max_positions: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6) as f32,
            short_filter: self.short_filter_size,
            filter: FilterConfig {
                features: self.filter_emb_dim,
                width: self.filter_order,
                inner_layers: self.filter_inner_layers,
                sine_frequency: self.filter_sine_frequency,
            },
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            bos_token_id: self.bos_token_id,
            eos_token_ids: OneOrMany::list(self.eos_token_id),
        })
    }
}

/// Errors unless the MLP's activation is SiLU.
fn silu(activation: Option<&str>) -> Result<(), String> {
    match activation.unwrap_or("silu") {
        "silu" | "swish" => Ok(()),
        other => Err(format!("hidden_act is '{other}'; allowed: silu")),
    }
}

/// A Llama's `config.json` as written; [`Config::read`] gives it meaning.
#[derive(Deserialize)]
struct Config {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    quantization_config: Option<QuantizationConfig>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn list(ids: Option<Self>) -> Vec<u32> {
        match ids {
            None => Vec::new(),
            Some(Self::One(id)) => vec![id],
            Some(Self::Many(ids)) => ids,
        }
    }
}

/// `rope_scaling`, or since transformers 5 `rope_parameters`, which holds theta too.
#[derive(Deserialize, Default)]
struct Rope {
    rope_type: Option<String>,
    /// The older spelling, which some files have beside the newer.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<u32>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
}

impl Config {
    /// The config, with defaults as in transformers' `LlamaConfig`; `Err` names the field that asks for what
    /// this library does not compute.
    fn read(self) -> Result<LlamaConfig, String> {
        let name = match &self.architectures {
            Some(names) => names.first().map_or("", String::as_str),
            None => self.model_type.as_deref().unwrap_or(""),
        };
        if !matches!(
            name,
            "LlamaForCausalLM" | "MistralForCausalLM" | "llama" | "mistral"
        ) {
            return Err(format!(
                "the architecture is '{name}'; allowed: LlamaForCausalLM, MistralForCausalLM, HyenaForCausalLM"
            ));
        }
        silu(self.hidden_act.as_deref())?;
        for (field, value) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
        ] {
            if value == Some(true) {
                return Err(format!(
                    "{field} is true; allowed: projections without bias"
                ));
            }
        }
        let max_positions = self.max_position_embeddings.unwrap_or(2048);
        if let Some(window) = self.sliding_window.filter(|&window| window < max_positions) {
            return Err(format!(
                "sliding_window is {window}, less than max_position_embeddings {max_positions}; allowed: \
                 attention over the whole context"
            ));
        }
        let head_dim = match self.head_dim {
            Some(dim) => dim,
            None => check::whole_heads(self.hidden_size, self.num_attention_heads)?,
        };
        let rope = self
            .rope_parameters
            .or(self.rope_scaling)
            .unwrap_or_default();
        let partial = rope
            .partial_rotary_factor
            .or(self.partial_rotary_factor)
            .unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(format!(
                "partial_rotary_factor is {partial}; allowed: over 0, up to 1"
            ));
        }
        Ok(LlamaConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            max_positions,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6) as f32,
            rope: RopeConfig {
                theta: rope.rope_theta.or(self.rope_theta).unwrap_or(10000.0),
                dims: (head_dim as f64 * partial) as usize,
                layout: RopeLayout::HalfSplit,
                scaling: rope.scaling(max_positions)?,
            },
            attention: Vec::new(),
            sparsity: Vec::new(),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            bos_token_id: self.bos_token_id,
            eos_token_ids: OneOrMany::list(self.eos_token_id),
        })
    }
}

impl Rope {
    fn scaling(&self, max_positions: usize) -> Result<RopeScaling, String> {
        let kind = match (self.rope_type.as_deref(), self.r#type.as_deref()) {
            (Some(new), Some(old)) if new != old => {
                return Err(format!(
                    "rope scaling is '{new}' by rope_type, '{old}' by type"
                ));
            }
            (new, old) => new.or(old).unwrap_or("default"),
        };
        let need = |field: &str, value: Option<f64>| {
            value.ok_or_else(|| format!("rope scaling '{kind}' is without {field}"))
        };
        let original = match self.original_max_position_embeddings {
            Some(positions) => positions,
            None => u32::try_from(max_positions).map_err(|_| {
                format!("max_position_embeddings is {max_positions}; allowed: 32 bits")
            })?,
        };
        Ok(match kind {
            // transformers' "dynamic" changes the base only beyond max_position_embeddings, which is the
            // longest context that we allow: up to there it is the unscaled embedding.
            "default" | "dynamic" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: need("factor", self.factor)?,
            },
            "ntk" => RopeScaling::Ntk {
                factor: need("factor", self.factor)?,
            },
            "yarn" => {
                if self.truncate == Some(false) {
                    return Err(
                        "rope scaling 'yarn' with truncate false is not implemented".to_owned()
                    );
                }
                let factor = need("factor", self.factor)?;
                let scale = |m: f64| {
                    if factor > 1.0 {
                        0.1 * m * factor.ln() + 1.0
                    } else {
                        1.0
                    }
                };
                let from_scales = self
                    .mscale
                    .zip(self.mscale_all_dim)
                    .filter(|&(a, b)| a != 0.0 && b != 0.0);
                RopeScaling::Yarn {
                    factor,
                    original_max_positions: original,
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                    attention_factor: self
                        .attention_factor
                        .or(from_scales.map(|(m, all)| scale(m) / scale(all))),
                }
            }
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_max_positions: original,
            },
            other => {
                return Err(format!(
                    "rope scaling '{other}'; allowed: default, linear, dynamic, ntk, yarn, llama3"
                ));
            }
        })
    }
}
