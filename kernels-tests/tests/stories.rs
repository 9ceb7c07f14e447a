//! Real weights: stories260K in its three formats, against the text, ids and f64 logits that came with them.
//!
//! Needs `FLASHWAVE_DATA`; each test reports 'skipped' without it.

use std::path::PathBuf;

use flashwave::kernels::attention::KvFormat;
use flashwave::loader::Weights;
use flashwave::model::{Llama, LlamaOptions, Sampling};
use flashwave::reference::llama::Llama as Reference;
use flashwave::{Context, DType};
use kernels_tests::tolerance::{Ulps, check};
use serde_json::Value;

/// `$FLASHWAVE_DATA/weights`; a relative path is taken from the workspace's root.
fn weights_folder(test: &str) -> Option<PathBuf> {
    let Some(data) = std::env::var_os("FLASHWAVE_DATA").filter(|d| !d.is_empty()) else {
        eprintln!("skipped: {test}: FLASHWAVE_DATA is not set");
        return None;
    };
    Some(
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(data)
            .join("weights"),
    )
}

fn formats(folder: &std::path::Path) -> Vec<(&'static str, Weights)> {
    let tokenizer = folder.join("stories260K/tok512.bin");
    let gguf = folder.join("stories260K_gguf");
    let open = |path: PathBuf, tokenizer: Option<&std::path::Path>| {
        Weights::open_with_tokenizer(path, tokenizer).expect("opens")
    };
    vec![
        (
            "llama2.c",
            open(folder.join("stories260K/stories260K.bin"), Some(&tokenizer)),
        ),
        (
            "gguf v1",
            open(gguf.join("tinyllamas-stories-260k-f32.gguf"), None),
        ),
        ("gguf v3", open(gguf.join("stories260K-f32-v3.gguf"), None)),
        ("hf", open(folder.join("stories260K_hf"), Some(&tokenizer))),
    ]
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("parses")
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("ids")
        .iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

/// MLPs of which the device holds a tenth of the neurons: every one that is needed is brought in, and the text is the same.
#[test]
fn within_a_budget_the_text_is_the_same() {
    let Some(folder) = weights_folder("within_a_budget_the_text_is_the_same") else {
        return;
    };
    let ctx = Context::new().expect("an adapter");
    let expected = json(folder.join("stories260K/expected_greedy_once.json"));
    let (all, prompt) = (ids(&expected["ids"]), ids(&expected["prompt_ids"]));
    let (_, weights) = formats(&folder).swap_remove(0);
    let c = weights.config().llama().expect("a llama").clone();
    let row = 4 * c.hidden_size as u64;
    let budget = (c.layers * c.intermediate_size) as u64 * (row + 4 + row / 5);
    let options = LlamaOptions {
        budget: Some(budget),
        ..LlamaOptions::default()
    };
    let model = Llama::load_with(&ctx, &weights, options, &mut |_| ()).expect("loads");
    let generated = model
        .generate(&prompt, &Sampling::greedy())
        .expect("starts");
    let count = (all.len() - prompt.len()).min(40);
    let found: Vec<u32> = generated
        .ignore_eos()
        .take(count)
        .map(|t| t.expect("a token"))
        .collect();
    assert_eq!(found, all[prompt.len()..][..count]);
    let done = model.streamed().expect("streams");
    assert!(done.resident_bytes <= budget, "{done:?}");
    // Without thresholds all neurons fire in turn, and few are met again.
    assert!(done.bytes > done.total_bytes, "{done:?}");
}

#[test]
fn greedy_text_and_ids_are_the_expected_ones_in_every_format() {
    let Some(folder) = weights_folder("greedy_text_and_ids_are_the_expected_ones_in_every_format")
    else {
        return;
    };
    let ctx = Context::new().expect("an adapter");
    for (format, weights) in formats(&folder) {
        let model = Llama::load(&ctx, &weights).expect("loads");
        for name in ["bos", "once", "dog"] {
            let expected = json(folder.join(format!("stories260K/expected_greedy_{name}.json")));
            let all = ids(&expected["ids"]);
            let prompt = ids(&expected["prompt_ids"]);
            let generated = model
                .generate(&prompt, &Sampling::greedy())
                .expect("starts")
                .ignore_eos();
            let found: Vec<u32> = generated
                .take(all.len() - prompt.len())
                .map(|t| t.expect("a token"))
                .collect();
            assert_eq!(found, all[prompt.len()..], "{format}, {name}");
            let tokenizer = weights.tokenizer().expect("a tokenizer");
            let text = tokenizer.decode(&all).expect("decodes");
            assert_eq!(
                text.trim_end(),
                expected["text"].as_str().expect("text").trim_end(),
                "{format}, {name}"
            );
        }
    }
}

/// Teacher-forced logits `[200, 512]` in f64 and the 201 ids that force them.
fn forced(folder: &std::path::Path) -> (Vec<u32>, Vec<f64>) {
    let path = folder.join("stories260K/logits_f64_greedy_bos.npz");
    let mut archive = npyz::npz::NpzArchive::open(path).expect("opens");
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    let logits = names.iter().find(|n| n.contains("logits")).expect("logits");
    let logits: Vec<f64> = archive
        .by_name(logits)
        .expect("reads")
        .expect("is there")
        .into_vec()
        .expect("f64");
    let ids = ids(&json(folder.join("stories260K/expected_greedy_bos.json"))["ids"]);
    (ids, logits)
}

#[test]
fn teacher_forced_logits_stay_within_the_derived_bound() {
    let Some(folder) = weights_folder("teacher_forced_logits_stay_within_the_derived_bound") else {
        return;
    };
    let ctx = Context::new().expect("an adapter");
    let (ids, exact) = forced(&folder);
    let vocab = 512;
    let steps = exact.len() / vocab;
    for (format, weights) in formats(&folder) {
        // Activations of the weights' precision double the squares of the errors that these make: within the bound, which
        // is twice the errors.
        let types = [
            (DType::F32, DType::F32),
            (DType::F16, DType::F32),
            (DType::F16, DType::F16),
            (DType::BF16, DType::F32),
            (DType::BF16, DType::BF16),
        ];
        for (dtype, activations) in types {
            let options = LlamaOptions {
                weights: Some(dtype),
                kv: Some(KvFormat::of(dtype).expect("a floating-point type")),
                activations: Some(activations),
                ..LlamaOptions::default()
            };
            let model = Llama::load_with(&ctx, &weights, options, &mut |_| ()).expect("loads");
            let mut session = model.session(512).expect("a session");
            let out = session
                .feed_all(&ids[..steps])
                .expect("feeds")
                .to_vec::<f32>()
                .expect("reads");
            // Naive f32 arithmetic on weights and cache stored alike: its distance from the f64 logits of the
            // original weights is what this storage costs.
            let mut reference = Reference::<f32>::new(&weights, dtype).expect("loads");
            let naive: Vec<f32> = ids[..steps]
                .iter()
                .flat_map(|&id| reference.feed(id))
                .collect();
            let outcome = check(&out, &exact, &naive, Ulps(0.0))
                .unwrap_or_else(|e| panic!("{format} {dtype} {activations}: {e}"));
            let label = format!("{format} {dtype}, activations {activations}");
            eprintln!("{label}: {:.2} of the bound", outcome.share);
            flips(&out, &exact, &naive, vocab, &label);
        }
    }
}

/// No arg-max may change where the exact margin between the two best tokens is over twice the largest error that
/// the bound admits.
fn flips(out: &[f32], exact: &[f64], naive: &[f32], vocab: usize, label: &str) {
    let largest = naive
        .iter()
        .zip(exact)
        .map(|(&n, &e)| (f64::from(n) - e).abs())
        .fold(0.0, f64::max);
    for (step, (out, exact)) in out.chunks(vocab).zip(exact.chunks(vocab)).enumerate() {
        let best = |values: &[f64]| {
            (0..vocab)
                .max_by(|&a, &b| values[a].total_cmp(&values[b]))
                .expect("tokens")
        };
        let first = best(exact);
        let mut others = exact.to_vec();
        others[first] = f64::NEG_INFINITY;
        let margin = exact[first] - exact[best(&others)];
        let out: Vec<f64> = out.iter().map(|&x| x.into()).collect();
        if margin > 2.0 * 2.0 * largest {
            assert_eq!(
                best(&out),
                first,
                "{label}: step {step} flipped over a margin of {margin}"
            );
        }
    }
}

#[test]
fn the_reference_reproduces_the_f64_logits() {
    let Some(folder) = weights_folder("the_reference_reproduces_the_f64_logits") else {
        return;
    };
    let (ids, exact) = forced(&folder);
    for (format, weights) in formats(&folder) {
        let mut reference = Reference::<f64>::new(&weights, DType::F32).expect("loads");
        let found: Vec<f64> = ids[..exact.len() / 512]
            .iter()
            .flat_map(|&id| reference.feed(id))
            .collect();
        let worst = found
            .iter()
            .zip(&exact)
            .map(|(f, e)| (f - e).abs())
            .fold(0.0, f64::max);
        assert!(worst < 1e-9, "{format}: {worst}");
    }
}
