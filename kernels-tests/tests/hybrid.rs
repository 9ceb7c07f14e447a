//! A model whose layers are partly sparse: prompt in chunks, token by token, and the reference agree, though the cache
//! drops what no later token meets.

use flashwave::kernels::attention::KvFormat;
use flashwave::model::{LayerAttention, Llama, LlamaOptions, Session, embedded};
use flashwave::reference::llama::Llama as Reference;
use flashwave::{Context, DType};
use kernels_tests::tolerance::{Ulps, check};

const LAYERS: usize = 5;
const CAPACITY: usize = 512;
/// More than one chunk, so that pages are used again; and tokens one by one after it.
const PROMPT: usize = 441;
const TOKENS: usize = 450;

fn plan(pattern: &str) -> Vec<LayerAttention> {
    LayerAttention::hybrid(LAYERS, &pattern.parse().expect(pattern), 16)
}

fn session(ctx: &Context, attention: Vec<LayerAttention>) -> flashwave::Result<Session> {
    let weights = embedded::weights()?;
    let options = LlamaOptions {
        weights: Some(DType::F32),
        kv: Some(KvFormat::F32),
        activations: None,
        attention,
        budget: None,
        sparsity: Vec::new(),
    };
    Llama::load_with(ctx, &weights, options, &mut |_| ())?.session(CAPACITY)
}

fn tokens() -> Vec<u32> {
    (0..TOKENS as u32).map(|i| i * i * 31 % 509).collect()
}

#[test]
fn prompt_token_by_token_and_the_reference_agree() {
    let ctx = Context::new().expect("an adapter");
    let weights = embedded::weights().expect("opens");
    let ids = tokens();
    for pattern in ["longgen:window=2,sinks=1,stride=6", "s2:stride=4,window=2"] {
        let mut exact = Reference::<f64>::new(&weights, DType::F32)
            .and_then(|r| r.attention(plan(pattern)))
            .expect("loads");
        let mut naive = Reference::<f32>::new(&weights, DType::F32)
            .and_then(|r| r.attention(plan(pattern)))
            .expect("loads");
        let exact: Vec<Vec<f64>> = ids.iter().map(|&id| exact.feed(id)).collect();
        let naive: Vec<Vec<f32>> = ids.iter().map(|&id| naive.feed(id)).collect();
        let agree = |found: &[f32], range: std::ops::Range<usize>| {
            let (exact, naive) = (exact[range.clone()].concat(), naive[range.clone()].concat());
            let outcome = check(found, &exact, &naive, Ulps(0.0));
            outcome.unwrap_or_else(|e| panic!("{pattern}, tokens {range:?}: {e}"));
        };

        let mut session = session(&ctx, plan(pattern)).expect("a session");
        let saved = session.cache().saved_bytes();
        assert!(saved > 0, "{pattern}: nothing saved");
        let logits = session.feed_all(&ids[..PROMPT]).expect("feeds");
        agree(&logits.to_vec::<f32>().expect("reads"), 0..PROMPT);
        for (i, &id) in ids.iter().enumerate().skip(PROMPT) {
            let logits = session.feed(&[id]).expect("feeds");
            agree(&logits.to_vec::<f32>().expect("reads"), i..i + 1);
        }

        let error = session.truncate(5).expect_err("dropped");
        assert!(
            error.to_string().starts_with("len: 5 of 450 tokens"),
            "{error}"
        );
        session.truncate(0).expect("everything");
        for (i, &id) in ids.iter().enumerate().take(20) {
            let logits = session.feed(&[id]).expect("feeds");
            agree(&logits.to_vec::<f32>().expect("reads"), i..i + 1);
        }
    }
}

#[test]
fn bad_plans_are_named() {
    let ctx = Context::new().expect("an adapter");
    let refused = |attention| match session(&ctx, attention) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let mut short = plan("dense");
    short.pop();
    assert_eq!(
        refused(short),
        "attention: 4 layers; allowed: none, or the model's 5"
    );
    let block = LayerAttention::Sparse {
        pattern: "dense".parse().expect("parses"),
        block: 20,
    };
    let error = refused(vec![block; LAYERS]);
    assert_eq!(error, "attention block: 20; allowed: 16, 32, 64 or 128");
    let weights = embedded::weights().expect("opens");
    let options = LlamaOptions {
        kv: Some(KvFormat::Int8),
        attention: plan("dense"),
        ..LlamaOptions::default()
    };
    let model = Llama::load_with(&ctx, &weights, options, &mut |_| ()).expect("loads");
    let error = model.session(CAPACITY).err().expect("refused").to_string();
    let allowed = "kv: int8; allowed: f32, f16 or bf16 for layers that drop blocks";
    assert_eq!(error, allowed);
}
