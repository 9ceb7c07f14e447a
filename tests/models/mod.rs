//! Small synthetic models in each format, for tests that need no outside files.
#![allow(dead_code, missing_docs)]

use half::{bf16, f16};

pub const VOCAB: usize = 16;
pub const HIDDEN: usize = 32;
pub const MLP: usize = 64;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;

pub type Files = Vec<(String, Vec<u8>)>;

/// A tensor: Hugging Face name, GGUF name, shape.
pub fn tensors() -> Vec<(String, String, Vec<usize>)> {
    let kv = KV_HEADS * HEAD_DIM;
    let mut all = vec![(
        "model.embed_tokens".to_owned(),
        "token_embd".to_owned(),
        vec![VOCAB, HIDDEN],
    )];
    for i in 0..LAYERS {
        for (hf, gguf, shape) in [
            ("input_layernorm", "attn_norm", vec![HIDDEN]),
            ("self_attn.q_proj", "attn_q", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", "attn_k", vec![kv, HIDDEN]),
            ("self_attn.v_proj", "attn_v", vec![kv, HIDDEN]),
            ("self_attn.o_proj", "attn_output", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", "ffn_norm", vec![HIDDEN]),
            ("mlp.gate_proj", "ffn_gate", vec![MLP, HIDDEN]),
            ("mlp.up_proj", "ffn_up", vec![MLP, HIDDEN]),
            ("mlp.down_proj", "ffn_down", vec![HIDDEN, MLP]),
        ] {
            all.push((
                format!("model.layers.{i}.{hf}"),
                format!("blk.{i}.{gguf}"),
                shape,
            ));
        }
    }
    all.push((
        "model.norm".to_owned(),
        "output_norm".to_owned(),
        vec![HIDDEN],
    ));
    all.into_iter()
        .map(|(hf, gguf, shape)| (hf + ".weight", gguf + ".weight", shape))
        .collect()
}

/// Bytes that look random, from a seed.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..count).map(step).collect()
}

/// Values in [-1, 1).
pub fn values(seed: u64, count: usize) -> Vec<f32> {
    let bytes = noise(seed, count * 2);
    bytes
        .chunks(2)
        .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0)
        .collect()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 32,
 "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1,
 "eos_token_id": [2], "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}"#;

pub fn safetensors(list: &[(String, Vec<usize>)]) -> Vec<u8> {
    let data: Vec<_> = list
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let values = values(i as u64, shape.iter().product());
            let (dtype, bytes): (_, Vec<u8>) = match i % 3 {
                0 => (safetensors::Dtype::F32, f32_bytes(&values)),
                1 => (
                    safetensors::Dtype::F16,
                    values
                        .iter()
                        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                        .collect(),
                ),
                _ => (
                    safetensors::Dtype::BF16,
                    values
                        .iter()
                        .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                        .collect(),
                ),
            };
            (name.clone(), dtype, shape.clone(), bytes)
        })
        .collect();
    let views = data.iter().map(|(name, dtype, shape, bytes)| {
        (
            name,
            safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

/// A Hugging Face folder of one file, or two shards.
pub fn hugging_face(config: &str, shards: usize) -> Files {
    let all: Vec<_> = tensors()
        .into_iter()
        .map(|(hf, _, shape)| (hf, shape))
        .collect();
    let mut files = vec![
        ("config.json".to_owned(), config.as_bytes().to_vec()),
        (
            "tokenizer.json".to_owned(),
            TOKENIZER_JSON.as_bytes().to_vec(),
        ),
    ];
    if shards == 1 {
        files.push(("model.safetensors".to_owned(), safetensors(&all)));
        return files;
    }
    let (mut index, chunk) = (Vec::new(), all.len().div_ceil(shards));
    for (i, part) in all.chunks(chunk).enumerate() {
        let name = format!("model-{i}.safetensors");
        index.extend(
            part.iter()
                .map(|(tensor, _)| format!("\"{tensor}\": \"{name}\"")),
        );
        files.push((name, safetensors(part)));
    }
    let index = format!("{{\"weight_map\": {{{}}}}}", index.join(", "));
    files.push((
        "model.safetensors.index.json".to_owned(),
        index.into_bytes(),
    ));
    files
}

/// Pieces of a score model, with their scores.
pub const PIECES: [(&str, f32); VOCAB] = [
    ("<unk>", 0.0),
    ("<s>", 0.0),
    ("</s>", 0.0),
    ("<0x0A>", 0.0),
    ("<0xE2>", 0.0),
    ("<0x82>", 0.0),
    ("<0xAC>", 0.0),
    (" ", -9.0),
    ("a", -10.0),
    ("b", -11.0),
    ("ab", -1.0),
    (" a", -2.0),
    (" ab", -3.0),
    ("ba", -1.0),
    ("c", -12.0),
    ("abab", -4.0),
];

/// The same vocabulary as Hugging Face's conversion of a Llama tokenizer has it.
pub const TOKENIZER_JSON: &str = r#"{"version": "1.0", "truncation": null,
 "padding": {"strategy": {"Fixed": 1000000000}, "direction": "Right", "pad_to_multiple_of": null,
  "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
 "added_tokens": [
  {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
  {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
  {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
 "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
  {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
 "pre_tokenizer": null, "post_processor": null,
 "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
  {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
 "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "<0xE2>": 4, "<0x82>": 5, "<0xAC>": 6, "▁": 7,
   "a": 8, "b": 9, "ab": 10, "▁a": 11, "▁ab": 12, "ba": 13, "c": 14, "abab": 15},
  "merges": ["a b", "b a", "▁ a", "▁ ab", "ab ab"]}}"#;

/// GPT-2's alphabet: Ġ is the space, Ċ the newline, â Ĥ ¬ the bytes of the euro sign.
pub const GPT2: [&str; VOCAB] = [
    "<|end|>",
    "<|begin|>",
    "a",
    "b",
    "c",
    "Ġ",
    "Ċ",
    "â",
    "Ĥ",
    "¬",
    "ab",
    "Ġa",
    "Ġab",
    "ba",
    "d",
    "abab",
];

/// llama2.c's checkpoint and tokenizer.
pub fn llama2c(vocab_sign: i32) -> Files {
    let mut bin = Vec::new();
    let header = [HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, VOCAB, 64];
    for (i, value) in header.into_iter().enumerate() {
        let value = i32::try_from(value).unwrap();
        bin.extend((if i == 5 { value * vocab_sign } else { value }).to_le_bytes());
    }
    let head = if vocab_sign < 0 { VOCAB * HIDDEN } else { 0 };
    let count: usize = tensors()
        .iter()
        .map(|(_, _, shape)| shape.iter().product::<usize>())
        .sum();
    bin.extend(f32_bytes(&values(7, count + 64 * HEAD_DIM + head)));
    let mut tok = 6i32.to_le_bytes().to_vec();
    for (piece, score) in PIECES {
        tok.extend(score.to_le_bytes());
        tok.extend((piece.len() as i32).to_le_bytes());
        tok.extend(piece.as_bytes());
    }
    vec![
        ("model.bin".to_owned(), bin),
        ("tokenizer.bin".to_owned(), tok),
    ]
}

/// Writes GGUF, whatever it is told to write.
pub struct Gguf {
    version: u32,
    values: Vec<u8>,
    value_count: u64,
    pub alignment: usize,
    pub tensors: Vec<GgufTensor>,
}

pub struct GgufTensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    pub offset: Option<u64>,
}

impl Gguf {
    pub fn new(version: u32) -> Self {
        Self {
            version,
            values: Vec::new(),
            value_count: 0,
            alignment: 32,
            tensors: Vec::new(),
        }
    }

    pub fn length(&self, n: u64) -> Vec<u8> {
        if self.version == 1 {
            (n as u32).to_le_bytes().to_vec()
        } else {
            n.to_le_bytes().to_vec()
        }
    }

    pub fn string(&self, s: &str) -> Vec<u8> {
        [self.length(s.len() as u64), s.as_bytes().to_vec()].concat()
    }

    pub fn put(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.values.extend(self.string(key));
        self.values.extend(kind.to_le_bytes());
        self.values.extend(value);
        self.value_count += 1;
        self
    }

    pub fn u32(&mut self, key: &str, value: usize) -> &mut Self {
        self.put(key, 4, &(value as u32).to_le_bytes())
    }

    pub fn str(&mut self, key: &str, value: &str) -> &mut Self {
        let value = self.string(value);
        self.put(key, 8, &value)
    }

    pub fn array(&mut self, key: &str, kind: u32, items: &[Vec<u8>]) -> &mut Self {
        let head = [kind.to_le_bytes().to_vec(), self.length(items.len() as u64)].concat();
        self.put(key, 9, &[head, items.concat()].concat())
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = [b"GGUF".to_vec(), self.version.to_le_bytes().to_vec()].concat();
        out.extend(self.length(self.tensors.len() as u64));
        out.extend(self.length(self.value_count));
        out.extend(&self.values);
        let (mut data, align) = (Vec::new(), self.alignment.max(1));
        for tensor in &self.tensors {
            out.extend(self.string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|&dim| self.length(dim)));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(align), 0);
        }
        out.resize(out.len().next_multiple_of(align), 0);
        out.extend(data);
        out
    }
}

/// Metadata of the small model but for its tokenizer.
pub fn gguf_config(version: u32) -> Gguf {
    let mut file = Gguf::new(version);
    file.str("general.architecture", "llama")
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", HIDDEN)
        .u32("llama.block_count", LAYERS)
        .u32("llama.feed_forward_length", MLP)
        .u32("llama.rope.dimension_count", HEAD_DIM)
        .u32("llama.attention.head_count", HEADS)
        .u32("llama.attention.head_count_kv", KV_HEADS)
        .put(
            "llama.attention.layer_norm_rms_epsilon",
            6,
            &1e-5f32.to_le_bytes(),
        );
    for (i, (_, name, shape)) in tensors().into_iter().enumerate() {
        let count: usize = shape.iter().product();
        let kind = [0, 1, 2, 8, 30][i % 5];
        let bytes = match kind {
            0 => f32_bytes(&values(i as u64, count)),
            1 => values(i as u64, count)
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            30 => values(i as u64, count)
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            _ => {
                let size = if kind == 2 { 18 } else { 34 };
                let mut bytes = noise(i as u64, count / 32 * size);
                for (block, scale) in bytes.chunks_mut(size).zip(values(99, count / 32)) {
                    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                }
                bytes
            }
        };
        let dims = shape.iter().rev().map(|&d| d as u64).collect();
        file.tensors.push(GgufTensor {
            name,
            dims,
            kind,
            bytes,
            offset: None,
        });
    }
    file
}

/// With a score tokenizer.
pub fn gguf_scores(version: u32) -> Gguf {
    let mut file = gguf_config(version);
    let pieces: Vec<_> = PIECES
        .iter()
        .map(|(p, _)| file.string(&p.replace(' ', "\u{2581}")))
        .collect();
    let scores: Vec<_> = PIECES
        .iter()
        .map(|(_, score)| score.to_le_bytes().to_vec())
        .collect();
    let types: Vec<_> = (0..VOCAB)
        .map(|i| [2, 3, 3, 6, 6, 6, 6].get(i).copied().unwrap_or(1))
        .collect();
    let types: Vec<_> = types
        .iter()
        .map(|t: &i32| t.to_le_bytes().to_vec())
        .collect();
    file.str("tokenizer.ggml.model", "llama")
        .array("tokenizer.ggml.tokens", 8, &pieces)
        .array("tokenizer.ggml.scores", 6, &scores)
        .array("tokenizer.ggml.token_type", 5, &types)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    file
}

/// With a tokenizer of merges.
pub fn gguf_merges(version: u32, pre: &str) -> Gguf {
    let mut file = gguf_config(version);
    let pieces: Vec<_> = GPT2.iter().map(|p| file.string(p)).collect();
    let merges: Vec<_> = ["a b", "Ġ a", "Ġ ab", "b a", "ab ab"]
        .iter()
        .map(|merge| file.string(merge))
        .collect();
    let types: Vec<_> = (0..VOCAB)
        .map(|i| (if i < 2 { 3i32 } else { 1 }).to_le_bytes().to_vec())
        .collect();
    file.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .array("tokenizer.ggml.tokens", 8, &pieces)
        .array("tokenizer.ggml.merges", 8, &merges)
        .array("tokenizer.ggml.token_type", 5, &types);
    file
}

/// A small Hyena of ragged sizes.
pub const HYENA_CONFIG: &str = r#"{"architectures": ["HyenaForCausalLM"], "model_type": "hyena", "vocab_size": 16,
 "hidden_size": 20, "intermediate_size": 36, "num_hidden_layers": 2, "max_position_embeddings": 300,
 "rms_norm_eps": 1e-5, "short_filter_size": 3, "filter_order": 6, "filter_emb_dim": 5, "filter_inner_layers": 1,
 "filter_sine_frequency": 3.0, "bos_token_id": 1, "eos_token_id": 2}"#;

/// Its tensors.
pub fn hyena_tensors() -> Vec<(String, Vec<usize>)> {
    let (hidden, mlp, width) = (20, 36, 6);
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden])];
    for i in 0..2 {
        for (part, shape) in [
            ("input_layernorm.weight", vec![hidden]),
            ("hyena.in_proj.weight", vec![3 * hidden, hidden]),
            ("hyena.short_filter.weight", vec![3 * hidden, 3]),
            ("hyena.short_filter.bias", vec![3 * hidden]),
            ("hyena.filter.layers.0.weight", vec![width, 5]),
            ("hyena.filter.layers.0.bias", vec![width]),
            ("hyena.filter.layers.1.weight", vec![width, width]),
            ("hyena.filter.layers.1.bias", vec![width]),
            ("hyena.filter.out.weight", vec![hidden, width]),
            ("hyena.filter.decay", vec![hidden]),
            ("hyena.skip", vec![hidden]),
            ("hyena.out_proj.weight", vec![hidden, hidden]),
            ("post_hyena_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![mlp, hidden]),
            ("mlp.up_proj.weight", vec![mlp, hidden]),
            ("mlp.down_proj.weight", vec![hidden, mlp]),
        ] {
            all.push((format!("model.layers.{i}.{part}"), shape));
        }
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    all
}

/// The small Hyena's folder.
pub fn hyena(config: &str) -> Files {
    let tokenizer = TOKENIZER_JSON.as_bytes().to_vec();
    vec![
        ("config.json".to_owned(), config.as_bytes().to_vec()),
        ("tokenizer.json".to_owned(), tokenizer),
        (
            "model.safetensors".to_owned(),
            safetensors(&hyena_tensors()),
        ),
    ]
}
