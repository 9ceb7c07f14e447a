//! Models whose weights are over a device's limit for one binding: split, they say what they say whole.

use std::path::Path;

use flashwave::loader::Weights;
use flashwave::model::{LlamaOptions, Model, embedded};
use flashwave::quant::Format;
use flashwave::{Context, DType, Tensor};

/// Less than most matrices of these models have.
const LIMIT: u64 = 96 << 10;
/// More rows than are multiplied by the kernel that streams weights.
const PROMPT: usize = 40;

fn low() -> Context {
    let builder = Context::builder().binding_limit(LIMIT);
    builder.build().expect("an adapter")
}

/// Logits after a prompt, and after a token more.
fn logits(ctx: &Context, weights: &Weights, dtype: Option<DType>) -> Vec<f32> {
    let options = LlamaOptions {
        weights: dtype,
        ..LlamaOptions::default()
    };
    let model = Model::load_with(ctx, weights, options, &mut |_| ()).expect("loads");
    let mut session = model.session(PROMPT + 8).expect("a session");
    // Ids from the first to the last.
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| i * 511 / 39).collect();
    let mut all = Vec::new();
    for tokens in [&prompt[..], &[509]] {
        let last = session.feed_then(tokens, &|_, _| Ok(())).expect("feeds");
        all.extend(last.to_vec::<f32>().expect("reads"));
    }
    all
}

#[test]
fn split_models_say_what_they_say_whole() {
    let (high, low) = (Context::new().expect("an adapter"), low());
    let table = Tensor::empty(&low, DType::F16, [512, 128]);
    let message = table.expect_err("over the limit").to_string();
    assert!(message.contains("at most 98304 bytes"), "{message}");

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/hyena-model");
    let llama = embedded::weights().expect("opens");
    let hyena = Weights::open(&folder).expect("opens");
    let int8 = DType::Quant(Format::INT8);
    for (name, weights, dtype) in [
        ("Llama of f16", &llama, None),
        ("Llama of int8", &llama, Some(int8)),
        ("Hyena of f16", &hyena, None),
    ] {
        let (whole, split) = (logits(&high, weights, dtype), logits(&low, weights, dtype));
        let largest = whole.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let apart = whole.iter().zip(&split).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0f32, f32::max);
        // Tiles may be others, and so the order of sums.
        assert!(apart <= 1e-4 * largest, "{name}: {apart} of {largest}");
        assert_eq!(whole.len(), split.len());
        assert!(whole.iter().all(|v| v.is_finite()));
    }
}
