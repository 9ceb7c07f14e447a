//! The loaders on small synthetic models: conversions, configs, tokenizers, and what bad files are told.

mod models;

use flashwave::DType;
use flashwave::kernels::rope::{RopeLayout, RopeScaling};
use flashwave::loader::{Stored, Tokenizer, Weights};
use flashwave::quant::GgufBlock;
use half::{bf16, f16};
use models::{Files, Gguf, HIDDEN};
use proptest::prelude::*;

fn gguf(file: &Gguf) -> flashwave::Result<Weights> {
    Weights::from_bytes(vec![("model.gguf".to_owned(), file.build())])
}

#[track_caller]
fn refused(result: flashwave::Result<Weights>, words: &[&str]) {
    let message = result.expect_err("a bad file was accepted").to_string();
    for word in words {
        assert!(message.contains(word), "'{message}' does not say '{word}'");
    }
}

/// The folder with one piece of its config replaced.
fn config(from: &str, to: &str) -> flashwave::Result<Weights> {
    assert!(models::CONFIG.contains(from));
    Weights::from_bytes(models::hugging_face(&models::CONFIG.replace(from, to), 1))
}

#[test]
fn quantised_blocks_decode_exactly() {
    let file = models::gguf_scores(3);
    let weights = gguf(&file).unwrap();
    let mut seen = 0;
    for ((hf, _, shape), raw) in models::tensors().into_iter().zip(&file.tensors) {
        let tensor = weights.tensor(&hf).unwrap();
        assert_eq!(tensor.shape, shape);
        let scale = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]).to_f64();
        let expected: Vec<f64> = match tensor.stored {
            Stored::Gguf(GgufBlock::Q8_0) => {
                let block = |b: &[u8]| -> Vec<f64> {
                    b[2..]
                        .iter()
                        .map(|&q| scale(b) * f64::from(q as i8))
                        .collect()
                };
                raw.bytes.chunks(34).flat_map(block).collect()
            }
            Stored::Gguf(GgufBlock::Q4_0) => {
                let block = |b: &[u8]| -> Vec<f64> {
                    let nibble = |i: usize| {
                        if i < 16 {
                            b[2 + i] & 15
                        } else {
                            b[2 + i - 16] >> 4
                        }
                    };
                    (0..32)
                        .map(|i| scale(b) * (f64::from(nibble(i)) - 8.0))
                        .collect()
                };
                raw.bytes.chunks(18).flat_map(block).collect()
            }
            _ => continue,
        };
        seen += 1;
        // Products of an 11-bit and an 8-bit significand are exact in f32.
        let decoded: Vec<f64> = tensor
            .to_f32()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect();
        assert_eq!(decoded, expected, "{hf}");
    }
    assert!(seen >= 6);
}

/// A llama2.c model whose embedding is larger than one conversion chunk, holding `values`.
fn large(values: impl Fn(usize) -> f32) -> Weights {
    let (dim, vocab) = (2048usize, 300usize);
    let header = [dim, 2, 1, 1, 1, vocab, 1];
    let mut bin: Vec<u8> = header
        .iter()
        .flat_map(|&v| (v as i32).to_le_bytes())
        .collect();
    let rest = 4 * dim * dim + 3 * dim * 2 + 3 * dim + dim;
    for i in 0..vocab * dim {
        bin.extend(values(i).to_le_bytes());
    }
    bin.resize(bin.len() + 4 * rest, 0);
    Weights::from_bytes(vec![("model.bin".to_owned(), bin)]).unwrap()
}

#[test]
fn conversion_streams_and_rounds_to_nearest_even() {
    let value = |i: usize| match i % 4 {
        0 => 1.0 + (i as f32) / 8192.0 / 16.0,
        1 => 1.0 + 1.0 / 2048.0,
        2 => -1e-7 * i as f32,
        _ => f32::from_bits(0x3f80_8000 + (i as u32 % 3) * 0x8000),
    };
    let weights = large(value);
    let tensor = weights.tensor("model.embed_tokens.weight").unwrap();
    let count = 300 * 2048;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (mut all, mut chunks) = (Vec::new(), 0);
        tensor
            .convert(dtype, &mut |offset, bytes| {
                assert_eq!(offset, all.len() as u64);
                assert!(bytes.len() <= 1 << 20);
                all.extend_from_slice(bytes);
                chunks += 1;
                Ok(())
            })
            .unwrap();
        assert!(chunks > 1);
        let expected: Vec<u8> = (0..count)
            .flat_map(|i| match dtype {
                DType::F32 => value(i).to_le_bytes().to_vec(),
                DType::F16 => f16::from_f32(value(i)).to_le_bytes().to_vec(),
                _ => bf16::from_f32(value(i)).to_le_bytes().to_vec(),
            })
            .collect();
        assert!(all == expected, "{dtype}");
    }
    // Half way between two f16: the even one below.
    assert_eq!(f16::from_f32(value(1)), f16::ONE);
    assert!(tensor.convert(DType::I8, &mut |_, _| Ok(())).is_err());
}

#[test]
fn what_overflows_f16_is_an_error() {
    let at = 2048 * 200 + 7;
    let weights = large(|i| if i == at { 65520.0 } else { 65519.0 });
    let tensor = weights.tensor("model.embed_tokens.weight").unwrap();
    let error = tensor
        .convert(DType::F16, &mut |_, _| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("element {at} is 65520")), "{error}");
    tensor.convert(DType::BF16, &mut |_, _| Ok(())).unwrap();
}

#[test]
fn formats_read_their_configs() {
    let hf = Weights::from_bytes(models::hugging_face(models::CONFIG, 2)).unwrap();
    assert_eq!(hf.config().llama().unwrap().head_dim, HIDDEN / 4);
    assert!(
        hf.config().llama().unwrap().tie_word_embeddings,
        "without lm_head.weight the model is tied"
    );
    assert_eq!(hf.config().llama().unwrap().eos_token_ids, [2]);
    assert_eq!(
        hf.config().llama().unwrap().rope.layout,
        RopeLayout::HalfSplit
    );
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 32,
    };
    assert_eq!(hf.config().llama().unwrap().rope.scaling, llama3);
    let one = Weights::from_bytes(models::hugging_face(models::CONFIG, 1)).unwrap();
    assert!(hf.names().eq(one.names()));
    assert_eq!(hf.config(), one.config());

    let untied = Weights::from_bytes(models::llama2c(-1)).unwrap();
    assert!(!untied.config().llama().unwrap().tie_word_embeddings);
    assert_eq!(untied.tensor("lm_head.weight").unwrap().shape, [16, HIDDEN]);
    assert_eq!(untied.config().llama().unwrap().bos_token_id, Some(1));
    assert_eq!(
        untied.config().llama().unwrap().rope.layout,
        RopeLayout::Interleaved
    );
}

#[test]
fn hyena_folders_are_read_and_checked() {
    let open = |from: &str, to: &str| {
        assert!(models::HYENA_CONFIG.contains(from), "{from}");
        let config = models::HYENA_CONFIG.replacen(from, to, 1);
        Weights::from_bytes(models::hyena(&config))
    };
    let weights = open("hyena", "hyena").unwrap();
    let config = weights.config().hyena().unwrap();
    assert_eq!((config.hidden_size, config.short_filter), (20, 3));
    assert_eq!((config.filter.width, config.filter.features), (6, 5));
    assert!(config.tie_word_embeddings, "without lm_head.weight");
    assert_eq!(weights.config().eos_token_ids(), [2]);
    let error = weights.config().llama().unwrap_err().to_string();
    assert_eq!(error, "architecture: Hyena; allowed: Llama");
    for (from, to, part) in [
        ("\"vocab_size\": 16", "\"vocab_size\": 17", "embed_tokens"),
        (
            "\"short_filter_size\": 3",
            "\"short_filter_size\": 17",
            "1 to 16",
        ),
        (
            "\"short_filter_size\": 3",
            "\"short_filter_size\": 4",
            "short_filter.weight",
        ),
        ("\"filter_emb_dim\": 5", "\"filter_emb_dim\": 4", "odd"),
        (
            "\"filter_order\": 6",
            "\"filter_order\": 0",
            "filter_order is 0",
        ),
        (
            "\"filter_inner_layers\": 1",
            "\"filter_inner_layers\": 0",
            "filter.layers.1",
        ),
        (
            "\"filter_inner_layers\": 1",
            "\"filter_inner_layers\": 2",
            "filter.layers.2",
        ),
        ("_frequency\": 3.0", "_frequency\": 0.0", "sine_frequency"),
        ("\"hidden_size\": 20,", "", "hidden_size"),
        ("\"bos_token_id\": 1", "\"bos_token_id\": 16", "BOS"),
    ] {
        let error = open(from, to).map(drop).expect_err(to).to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
}

#[test]
fn rope_scaling_in_both_spellings() {
    let scaling = |json: &str| {
        let start = models::CONFIG.find("\"rope_scaling\"").unwrap();
        let text = format!("{} {json}}}", &models::CONFIG[..start]);
        Weights::from_bytes(models::hugging_face(&text, 1))
            .map(|w| w.config().llama().unwrap().rope)
    };
    let rope = |json: &str| scaling(json).unwrap();
    assert_eq!(
        rope(r#""rope_theta": 5e5, "rope_scaling": null"#).theta,
        5e5
    );
    assert_eq!(rope(r#""partial_rotary_factor": 0.5"#).dims, 4);
    let linear = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(
        rope(r#""rope_scaling": {"type": "linear", "factor": 2}"#).scaling,
        linear
    );
    let new = rope(r#""rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 7}"#);
    assert_eq!((new.scaling, new.theta), (linear, 7.0));
    let none = rope(r#""rope_scaling": {"type": "dynamic", "factor": 2}"#).scaling;
    assert_eq!(none, RopeScaling::None);
    let both = r#""rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}"#;
    assert_eq!(rope(both).scaling, linear);
    let yarn = rope(r#""rope_scaling": {"rope_type": "yarn", "factor": 4}"#).scaling;
    let expected = RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    };
    assert_eq!(yarn, expected);
    for bad in [
        r#""rope_scaling": {"type": "linear"}"#,
        r#""rope_scaling": {"type": "linear", "factor": 0.5}"#,
        r#""rope_scaling": {"type": "longrope"}"#,
        r#""rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2}"#,
        r#""partial_rotary_factor": 0.1"#,
        r#""rope_theta": -1"#,
    ] {
        assert!(scaling(bad).is_err(), "{bad}");
    }
}

#[test]
fn configs_that_are_not_ours_are_refused() {
    refused(
        config("LlamaForCausalLM", "GemmaForCausalLM"),
        &["GemmaForCausalLM", "config.json"],
    );
    refused(
        config("\"bos", "\"hidden_act\": \"gelu\", \"bos"),
        &["hidden_act", "gelu"],
    );
    refused(
        config("\"bos", "\"attention_bias\": true, \"bos"),
        &["attention_bias"],
    );
    refused(
        config("\"bos", "\"sliding_window\": 16, \"bos"),
        &["sliding_window", "16"],
    );
    refused(
        config("\"bos_token_id\": 1", "\"bos_token_id\": 16"),
        &["BOS", "16"],
    );
    assert!(config("LlamaForCausalLM", "MistralForCausalLM").is_ok());
}

#[test]
fn configs_that_contradict_the_weights_are_refused() {
    refused(
        config("\"intermediate_size\": 64", "\"intermediate_size\": 96"),
        &[
            "model.layers.0.mlp.gate_proj.weight",
            "[64, 32]",
            "[96, 32]",
        ],
    );
    refused(
        config(
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 2000000000",
        ),
        &["model.layers.2.input_layernorm.weight is missing"],
    );
    refused(
        config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
        &["model.layers.1."],
    );
    refused(
        config("\"bos", "\"tie_word_embeddings\": false, \"bos"),
        &["lm_head.weight is missing"],
    );
    refused(
        config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
        &["3", "4 heads"],
    );
    refused(
        config("\"num_key_value_heads\": 2,", ""),
        &["k_proj", "[16, 32]", "[32, 32]"],
    );
    let weights = Weights::from_bytes(models::hugging_face(models::CONFIG, 1)).unwrap();
    let error = weights
        .tensor("model.layers.0.self_attn.qproj.weight")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("near: model.layers.0.self_attn.q_proj.weight"),
        "{error}"
    );
}

/// The words of GPTQ's and AWQ's folders for the same matrices: codes, zero points and scales that are a function of the place.
fn packed(awq: bool) -> Files {
    let code = |row: usize, k: usize| ((row * 7 + k * 3 + row * k) % 16) as u32;
    let zero = |row: usize, g: usize| ((row * 5 + g) % 15 + 1) as u32;
    let scale = |row: usize, g: usize| f16::from_f32(0.01 * (1 + row % 9 + g) as f32);
    // Of the eight outputs of a word, the one at each place.
    let order = if awq {
        [0, 2, 4, 6, 1, 3, 5, 7]
    } else {
        [0, 1, 2, 3, 4, 5, 6, 7]
    };
    let word =
        |of: &dyn Fn(usize) -> u32| (0..8).map(|i| of(i) << (4 * i)).sum::<u32>().to_le_bytes();
    let mut list: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, _, shape) in models::tensors() {
        if !name.contains("_proj") {
            let count = shape.iter().product();
            let bytes = models::f32_bytes(&models::values(3, count));
            list.push((name, safetensors::Dtype::F32, shape, bytes));
            continue;
        }
        let base = name.strip_suffix("weight").unwrap();
        let (rows, cols) = (shape[0], shape[1]);
        let groups = cols / 32;
        let (qweight, shape): (Vec<u8>, _) = if awq {
            let each = (0..cols).flat_map(|k| (0..rows / 8).map(move |n| (k, n)));
            (
                each.flat_map(|(k, n)| word(&|i| code(8 * n + order[i], k)))
                    .collect(),
                vec![cols, rows / 8],
            )
        } else {
            let each = (0..cols / 8).flat_map(|k| (0..rows).map(move |n| (k, n)));
            (
                each.flat_map(|(k, n)| word(&|i| code(n, 8 * k + i)))
                    .collect(),
                vec![cols / 8, rows],
            )
        };
        list.push((
            format!("{base}qweight"),
            safetensors::Dtype::I32,
            shape,
            qweight,
        ));
        let each = (0..groups).flat_map(|g| (0..rows / 8).map(move |n| (g, n)));
        let stored = |row: usize, g: usize| zero(row, g) - u32::from(!awq);
        let zeros = each
            .flat_map(|(g, n)| word(&|i| stored(8 * n + order[i], g)))
            .collect();
        list.push((
            format!("{base}qzeros"),
            safetensors::Dtype::I32,
            vec![groups, rows / 8],
            zeros,
        ));
        let each = (0..groups).flat_map(|g| (0..rows).map(move |n| (g, n)));
        let scales = each.flat_map(|(g, n)| scale(n, g).to_le_bytes()).collect();
        list.push((
            format!("{base}scales"),
            safetensors::Dtype::F16,
            vec![groups, rows],
            scales,
        ));
        if !awq {
            let groups = (0..cols as i32)
                .flat_map(|k| (k / 32).to_le_bytes())
                .collect();
            list.push((
                format!("{base}g_idx"),
                safetensors::Dtype::I32,
                vec![cols],
                groups,
            ));
        }
    }
    let views = list.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
        (name, view.unwrap())
    });
    let method = if awq { "awq" } else { "gptq" };
    let config = models::CONFIG.replace(
        "\"bos_token_id\"",
        &format!("\"quantization_config\": {{\"quant_method\": \"{method}\", \"bits\": 4, \"group_size\": 32}}, \"bos_token_id\""),
    );
    vec![
        ("config.json".to_owned(), config.into_bytes()),
        (
            "model.safetensors".to_owned(),
            safetensors::serialize(views, None).unwrap(),
        ),
    ]
}

#[test]
fn gptq_and_awq_folders_are_read_without_rounding() {
    let [gptq, awq] = [false, true].map(|awq| Weights::from_bytes(packed(awq)).unwrap());
    assert!(gptq.names().eq(awq.names()));
    for (name, _, shape) in models::tensors() {
        if !name.contains("_proj") {
            continue;
        }
        let matrix = gptq.tensor(&name).unwrap().quant().unwrap().unwrap();
        assert_eq!(
            matrix,
            awq.tensor(&name).unwrap().quant().unwrap().unwrap(),
            "{name}"
        );
        assert_eq!(matrix.layout().format.to_string(), "int4/along32/f16/point");
        for (i, value) in matrix.decode().into_iter().enumerate() {
            let (row, k) = (i / shape[1], i % shape[1]);
            let code = ((row * 7 + k * 3 + row * k) % 16) as f64;
            let zero = ((row * 5 + k / 32) % 15 + 1) as f64;
            let scale = f16::from_f32(0.01 * (1 + row % 9 + k / 32) as f32).to_f64();
            assert_eq!(value, (code - zero) * scale, "{name} {row} {k}");
        }
    }
}

#[test]
fn packed_matrices_that_are_not_read_are_refused() {
    let with = |from: &str, to: &str| {
        let mut files = packed(false);
        files[0].1 = files[0].1.replace_all(from, to);
        Weights::from_bytes(files)
    };
    refused(with("\"bits\": 4", "\"bits\": 3"), &["bits", "allowed: 4"]);
    refused(
        with("gptq", "bitsandbytes"),
        &["quant_method bitsandbytes", "config.json"],
    );
    refused(
        with("\"group_size\": 32", "\"group_size\": 48"),
        &["group_size 48"],
    );
    refused(
        with("\"group_size\": 32", "\"group_size\": 64"),
        &["qweight", "allowed"],
    );
    refused(
        with("\"quantization_config\"", "\"other\""),
        &["I32", "quantization_config"],
    );
    let mut files = packed(false);
    let part = b"mlp.down_proj.qzeros";
    let mut windows = files[1].1.windows(part.len());
    let at = windows.position(|w| w == part).unwrap();
    files[1].1[at] = b'n';
    refused(Weights::from_bytes(files), &["down_proj.qzeros is missing"]);
}

fn hf_with(edit: impl FnOnce(&mut Files)) -> flashwave::Result<Weights> {
    let mut files = models::hugging_face(models::CONFIG, 2);
    edit(&mut files);
    Weights::from_bytes(files)
}

#[test]
fn bad_safetensors_are_refused() {
    refused(hf_with(|f| f[2].1.truncate(1000)), &["model-0.safetensors"]);
    refused(
        hf_with(|f| f[2].1.clear()),
        &["model-0.safetensors", "empty"],
    );
    refused(hf_with(|f| f[2].1[..8].fill(255)), &["model-0.safetensors"]);
    refused(
        hf_with(|f| drop(f.remove(2))),
        &["model-0.safetensors", "missing"],
    );
    refused(
        hf_with(|f| f[4].1 = f[4].1.replace_all("model-0", "../model-0")),
        &["plain file name"],
    );
    refused(
        hf_with(|f| f[4].1 = f[4].1.replace_all("model.norm", "model.nerm")),
        &["model.nerm"],
    );
    // Eight tensors of 2^61 - 1 bytes end at 2^64 - 8; adding the header's length overflows.
    let size = (1u64 << 61) - 1;
    let entries: Vec<_> = (0..8)
        .map(|i| {
            let (from, to) = (size * i, size * (i + 1));
            format!(
                "\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{from},{to}]}}"
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let lying = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    refused(hf_with(|f| f[2].1 = lying), &["model-0.safetensors"]);
}

trait ReplaceAll {
    fn replace_all(&self, from: &str, to: &str) -> Vec<u8>;
}

impl ReplaceAll for Vec<u8> {
    fn replace_all(&self, from: &str, to: &str) -> Vec<u8> {
        String::from_utf8(self.clone())
            .unwrap()
            .replace(from, to)
            .into_bytes()
    }
}

#[test]
fn bad_gguf_files_are_refused() {
    let edited = |edit: &dyn Fn(&mut Gguf)| {
        let mut file = models::gguf_scores(3);
        edit(&mut file);
        gguf(&file)
    };
    refused(
        edited(&|f| f.tensors[1].offset = Some(0)),
        &["overlap", "bytes"],
    );
    refused(
        edited(&|f| f.tensors[1].offset = Some(33)),
        &["33", "alignment"],
    );
    refused(
        edited(&|f| f.tensors[1].offset = Some(u64::MAX - 31)),
        &["overflow"],
    );
    refused(
        edited(&|f| f.tensors[1].offset = Some(1 << 40)),
        &["past the end"],
    );
    refused(
        edited(&|f| f.tensors[1].dims = vec![1; 5]),
        &["5 dimensions", "at byte"],
    );
    refused(edited(&|f| f.tensors[1].dims = vec![0]), &["zero"]);
    refused(
        edited(&|f| f.tensors[1].dims = vec![1 << 62, 4]),
        &["attn_norm"],
    );
    refused(
        edited(&|f| f.tensors[2].dims = vec![31, 32]),
        &["blocks of 32"],
    );
    refused(edited(&|f| f.tensors[1].kind = 4), &["ggml type 4"]);
    refused(
        edited(&|f| f.tensors[1].name = "token_embd.weight".into()),
        &["twice"],
    );
    refused(
        edited(&|f| f.tensors[2].name = "blk.0.attn_q.bias".into()),
        &["q_proj.weight is missing"],
    );
    refused(
        edited(&|f| drop(f.tensors.pop())),
        &["model.norm.weight is missing"],
    );
    refused(
        edited(&|f| {
            f.u32("general.alignment", 0);
        }),
        &["alignment is 0"],
    );
    refused(
        edited(&|f| {
            f.u32("general.alignment", 24);
        }),
        &["alignment is 24"],
    );
    refused(
        edited(&|f| {
            f.u32("llama.block_count", 3);
        }),
        &["llama.block_count", "twice"],
    );
    refused(
        edited(&|f| {
            f.str("llama.rope.scaling.type", "x");
        }),
        &["scaling.type", "'x'"],
    );
    refused(
        edited(&|f| {
            f.put("bool", 7, &[2]);
        }),
        &["boolean"],
    );
    refused(
        edited(&|f| {
            f.put("kind", 13, &[2]);
        }),
        &["type 13"],
    );
    let long = u64::MAX.to_le_bytes();
    refused(
        edited(&|f| {
            f.put("text", 8, &long);
        }),
        &["18446744073709551615 bytes"],
    );
    let array = |kind: u32| [&kind.to_le_bytes()[..], &long].concat();
    for kind in [0, 6, 8, 9, 12] {
        refused(
            edited(&|f| {
                f.put("many", 9, &array(kind));
            }),
            &["at byte"],
        );
    }
    let nested: Vec<u8> = (0..100)
        .flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat())
        .collect();
    refused(
        edited(&|f| {
            f.put("deep", 9, &nested);
        }),
        &["nested"],
    );
    refused(
        edited(&|f| {
            f.put("\u{1}", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]);
        }),
        &["UTF-8"],
    );

    let whole = models::gguf_scores(3).build();
    for length in (0..whole.len()).step_by(97) {
        let cut = Weights::from_bytes(vec![("m.gguf".to_owned(), whole[..length].to_vec())]);
        refused(cut, &["m.gguf"]);
    }
    let mut big_endian = whole;
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    refused(
        Weights::from_bytes(vec![("m.gguf".to_owned(), big_endian)]),
        &["little-endian"],
    );
}

#[test]
fn bad_llama2c_files_are_refused() {
    let field = |at: usize, value: i32| {
        let mut files = models::llama2c(1);
        files[0].1[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
        Weights::from_bytes(files)
    };
    for at in 0..7 {
        for value in [0, -1, i32::MIN, i32::MAX, 1 << 20] {
            refused(field(at, value), &["model.bin"]);
        }
    }
    refused(field(0, 0x616b_3432), &["version 1"]);
    let with = |edit: &dyn Fn(&mut Files)| {
        let mut files = models::llama2c(1);
        edit(&mut files);
        Weights::from_bytes(files)
    };
    refused(with(&|f| f[0].1.clear()), &["empty"]);
    refused(with(&|f| f[0].1.truncate(100)), &["100 bytes"]);
    refused(with(&|f| f[1].1.clear()), &["tokenizer.bin", "empty"]);
    refused(
        with(&|f| f[1].1.truncate(60)),
        &["tokenizer.bin", "at byte"],
    );
    refused(
        with(&|f| f[1].1.push(0)),
        &["tokenizer.bin", "another model"],
    );
    refused(
        with(&|f| f[1].1[8..12].fill(255)),
        &["tokenizer.bin", "token 0"],
    );
    refused(Weights::from_bytes(Files::new()), &["none"]);
}

#[test]
fn llama3_factors_in_gguf_are_recognised() {
    let (theta, dims) = (500_000f64, models::HEAD_DIM);
    let factors: Vec<f32> = (0..dims / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / dims as f64);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
        })
        .collect();
    let with = |factors: &[f32]| {
        let mut file = models::gguf_scores(3);
        file.put("llama.rope.freq_base", 6, &(theta as f32).to_le_bytes());
        file.tensors.push(models::GgufTensor {
            name: "rope_freqs.weight".to_owned(),
            dims: vec![factors.len() as u64],
            kind: 0,
            bytes: models::f32_bytes(factors),
            offset: None,
        });
        gguf(&file)
    };
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    assert_eq!(
        with(&factors)
            .unwrap()
            .config()
            .llama()
            .unwrap()
            .rope
            .scaling,
        expected
    );
    let unscaled = with(&[1.0; 4]).unwrap();
    assert_eq!(
        unscaled.config().llama().unwrap().rope.scaling,
        RopeScaling::None
    );
    refused(with(&[1.0, 2.0, 3.0, 4.0]), &["rope_freqs"]);
    refused(with(&factors[..3]), &["rope_freqs"]);
}

/// run.c's encode, as it stands there: find the best pair, merge it, begin again.
fn run_c(text: &str) -> Vec<u32> {
    let id = |piece: &str| {
        models::PIECES
            .iter()
            .position(|(p, _)| *p == piece)
            .map(|i| i as u32)
    };
    let mut tokens: Vec<u32> = Vec::new();
    if !text.is_empty() {
        tokens.extend(id(" "));
    }
    for c in text.chars() {
        match id(c.encode_utf8(&mut [0; 4])) {
            Some(id) => tokens.push(id),
            // Where run.c adds 3 to the byte, this vocabulary has only a few bytes.
            None => tokens.extend(
                c.encode_utf8(&mut [0; 4])
                    .bytes()
                    .map(|b| id(&format!("<0x{b:02X}>")).unwrap_or(0)),
            ),
        }
    }
    loop {
        let (mut best, mut found) = (-1e10, None);
        for (i, pair) in tokens.windows(2).enumerate() {
            let text = pair
                .iter()
                .map(|&t| models::PIECES[t as usize].0)
                .collect::<String>();
            if let Some(merged) = id(&text)
                && models::PIECES[merged as usize].1 > best
            {
                (best, found) = (models::PIECES[merged as usize].1, Some((i, merged)));
            }
        }
        let Some((i, merged)) = found else {
            return tokens;
        };
        tokens.splice(i..i + 2, [merged]);
    }
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids
        .iter()
        .filter_map(|&id| stream.push(id).unwrap())
        .collect();
    text.extend(stream.finish().unwrap());
    text
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn score_merges_are_those_of_run_c() {
    let weights = Weights::from_bytes(models::llama2c(1)).unwrap();
    let tokenizer = weights.tokenizer().unwrap();
    let scores = gguf(&models::gguf_scores(3)).unwrap();
    proptest!(cases(), |(text in "[ab c€\nd]{0,40}")| {
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(&ids, &run_c(&text));
        prop_assert_eq!(&ids, &scores.tokenizer().unwrap().encode(&text).unwrap());
        if !text.contains('d') {
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    });
    // Control tokens are text to llama2.c and themselves in GGUF.
    assert_eq!(
        scores.tokenizer().unwrap().encode("a<s>b").unwrap(),
        [11, 1, 7, 9]
    );
    assert_ne!(tokenizer.encode("a<s>b").unwrap(), [11, 1, 7, 9]);
}

#[test]
fn streams_join_to_what_decode_gives() {
    let all = [
        Weights::from_bytes(models::llama2c(1)).unwrap(),
        gguf(&models::gguf_scores(3)).unwrap(),
        gguf(&models::gguf_merges(3, "gpt-2")).unwrap(),
        gguf(&models::gguf_merges(3, "llama-bpe")).unwrap(),
        Weights::from_bytes(models::hugging_face(models::CONFIG, 1)).unwrap(),
    ];
    for (i, weights) in all.iter().enumerate() {
        let tokenizer = weights.tokenizer().unwrap();
        proptest!(cases(), |(ids in prop::collection::vec(0u32..16, 0..24))| {
            let text = tokenizer.decode(&ids).unwrap();
            if i < 4 || !text.contains('\u{fffd}') {
                prop_assert_eq!(stream(tokenizer, &ids), text);
            }
        });
        assert!(tokenizer.decode(&[16]).is_err());
        assert!(tokenizer.stream().push(16).is_err());
        assert_eq!(tokenizer.vocab_size(), 16);
    }
}

#[test]
fn merge_tokenizers_round_trip() {
    for pre in ["gpt-2", "llama-bpe", "smollm"] {
        let weights = gguf(&models::gguf_merges(3, pre)).unwrap();
        let tokenizer = weights.tokenizer().unwrap();
        let ids = tokenizer.encode("ab abab c€\n<|end|>").unwrap();
        assert_eq!(ids, [10, 12, 10, 5, 4, 7, 8, 9, 6, 0], "{pre}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "ab abab c€\n");
    }
    refused(
        gguf(&models::gguf_merges(3, "gpt-5")),
        &["gpt-5", "known are"],
    );
}

#[test]
fn json_tokenizers_agree_with_score_models() {
    let json = Weights::from_bytes(models::hugging_face(models::CONFIG, 1)).unwrap();
    let tokenizer = json.tokenizer().unwrap();
    // The padding of a thousand million tokens that the file asks for is not heeded.
    assert_eq!(tokenizer.encode("ab c").unwrap(), [12, 7, 14]);
    assert_eq!(
        tokenizer.decode(&[1, 12, 7, 14, 4, 5, 6, 3, 2]).unwrap(),
        "ab c€\n"
    );
}
