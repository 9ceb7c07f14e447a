//! Hyena against its reference: prompts by convolution, and token by token by the relaxed convolution.

#[path = "../../tests/models/mod.rs"]
mod models;

use flashwave::kernels::hyena::Relaxed;
use flashwave::loader::Weights;
use flashwave::model::{Decode, Hyena, HyenaSession, Sampling};
use flashwave::reference::hyena::Hyena as Reference;
use flashwave::{Context, DType};
use kernels_tests::grammar::Grammar;
use kernels_tests::tolerance::{Ulps, check, farther};
use serde_json::Value;

/// As many tokens as the small model has positions.
const TOKENS: usize = 300;

fn weights() -> Weights {
    Weights::from_bytes(models::hyena(models::HYENA_CONFIG)).expect("opens")
}

fn tokens() -> Vec<u32> {
    let noise = models::noise(3, TOKENS);
    noise.into_iter().map(|b| u32::from(b) % 16).collect()
}

/// Logits of every token: in f64 of the weights as they are, in f32 of the weights as `dtype`, the long convolutions as sums
/// and by FFT.
fn expected(weights: &Weights, dtype: DType) -> (Vec<f64>, Vec<f32>) {
    let mut exact = Reference::<f64>::new(weights, DType::F32).expect("loads");
    let mut naive = Reference::<f32>::new(weights, dtype).expect("loads");
    let by_fft = naive.text(&tokens());
    let exact: Vec<f64> = tokens().into_iter().flat_map(|t| exact.feed(t)).collect();
    let sums = tokens().into_iter().flat_map(|t| naive.feed(t)).collect();
    let naive = farther(&exact, [sums, by_fft]);
    (exact, naive)
}

/// Logits of `tokens`, one call after the other with as many tokens as `parts` says.
fn by_parts(session: &mut HyenaSession, parts: &[usize]) -> Vec<f32> {
    let (all, mut at, mut logits) = (tokens(), 0, Vec::new());
    for &part in parts {
        let fed = &all[at..at + part];
        logits.extend(
            match part {
                1 => session.feed(fed).and_then(|l| l.to_vec::<f32>()),
                _ => session.feed_all(fed).and_then(|l| l.to_vec::<f32>()),
            }
            .expect("feeds"),
        );
        at += part;
    }
    logits
}

#[test]
fn prompts_and_single_tokens_are_the_reference() {
    let ctx = Context::new().expect("an adapter");
    let weights = weights();
    let (exact, naive) = expected(&weights, DType::F32);
    let model = Hyena::load_with(&ctx, &weights, Some(DType::F32), &mut |_| ()).expect("loads");
    let ones = |n: usize| vec![1; n];
    // At once; token by token, through pushes of 64 and 128; from a prompt on, with one more between.
    for parts in [
        vec![TOKENS],
        ones(TOKENS),
        [vec![37], ones(100), vec![60], ones(103)].concat(),
    ] {
        // By FFT from blocks of 128 on, and for the whole text.
        let relaxed = Relaxed {
            block: 32,
            direct: 64,
        };
        let session = model.session_with(TOKENS, relaxed);
        let mut session = session.expect("a session");
        let out = by_parts(&mut session, &parts);
        let outcome = check(&out, &exact, &naive, Ulps(0.0));
        outcome.unwrap_or_else(|e| panic!("{} parts: {e}", parts.len()));
        // Nothing of the text stays behind.
        session.reset().expect("resets");
        let again = by_parts(&mut session, &parts[..1]);
        assert_eq!(again, out[..again.len()]);
    }
}

#[test]
fn half_precision_weights_cost_what_their_rounding_costs() {
    let ctx = Context::new().expect("an adapter");
    let weights = weights();
    for dtype in [DType::F16, DType::BF16] {
        let (exact, naive) = expected(&weights, dtype);
        let model = Hyena::load_with(&ctx, &weights, Some(dtype), &mut |_| ()).expect("loads");
        // Directly throughout.
        let mut session = model.session(200).expect("a session");
        let out = by_parts(&mut session, &[&[90][..], &[1; 110]].concat());
        let n = out.len();
        check(&out, &exact[..n], &naive[..n], Ulps(0.0)).unwrap_or_else(|e| panic!("{dtype}: {e}"));
    }
}

#[test]
fn greedy_text_does_not_depend_on_how_it_began() {
    let ctx = Context::new().expect("an adapter");
    let model = Hyena::load(&ctx, &weights()).expect("loads");
    let prompt = &tokens()[..40];
    let greedy = |session: &mut HyenaSession, prompt: &[u32]| -> Vec<u32> {
        let text = session
            .generate(prompt, &Sampling::greedy())
            .expect("starts");
        text.ignore_eos()
            .take(90)
            .map(|t| t.expect("a token"))
            .collect()
    };
    let mut whole = model.session(200).expect("a session");
    let mut parts = model.session(300).expect("a session");
    parts.feed(&prompt[..1]).expect("feeds");
    parts.feed(&prompt[1..20]).expect("feeds");
    assert_eq!(
        greedy(&mut whole, prompt),
        greedy(&mut parts, &prompt[20..])
    );
    assert_eq!((whole.position(), whole.capacity()), (129, 200));
}

#[test]
fn bad_arguments_are_named() {
    let ctx = Context::new().expect("an adapter");
    let model = Hyena::load(&ctx, &weights()).expect("loads");
    let message = |capacity| model.session(capacity).err().expect("refused").to_string();
    assert!(message(0).starts_with("capacity: 0 tokens"));
    assert!(message(301).contains("1 to 300"));
    let odd = Relaxed {
        block: 48,
        direct: 64,
    };
    let refused = model.session_with(8, odd).err().expect("refused");
    assert_eq!(refused.to_string(), "block: 48; allowed: a power of two");
    let mut session = model.session(8).expect("a session");
    let mut refused = |tokens: &[u32]| {
        session
            .feed(tokens)
            .map(drop)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(&[]).starts_with("tokens: none"));
    assert!(refused(&[1, 16]).starts_with("tokens[1]: 16"));
    assert!(refused(&[1; 9]).contains("8 in all"));
    let llama = Weights::from_bytes(models::hugging_face(models::CONFIG, 1)).expect("opens");
    let error = Hyena::load(&ctx, &llama)
        .err()
        .expect("refused")
        .to_string();
    assert_eq!(error, "architecture: Llama; allowed: Hyena");
}

/// The folder of the Hyena that tools/train/hyena.py made.
fn trained() -> Weights {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/hyena-model");
    Weights::open(root).expect("opens")
}

fn oracle() -> Value {
    serde_json::from_str(include_str!("../../assets/hyena-model/expected.json")).expect("parses")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn the_trained_model_writes_what_pytorch_said_and_it_parses() {
    let ctx = Context::new().expect("an adapter");
    let weights = trained();
    let model = Hyena::load(&ctx, &weights).expect("loads");
    let tokenizer = weights.tokenizer().expect("a tokenizer");
    let oracle = oracle();
    let check = |run: &Value, most: usize, sentences: usize| {
        let prompt = ids(&run["prompt_ids"]);
        let mut steps = ids(&run["ids"]);
        steps.truncate(most);
        let text = model
            .generate(&prompt, &Sampling::greedy())
            .expect("starts");
        let found: Vec<u32> = text
            .ignore_eos()
            .take(steps.len())
            .map(|t| t.expect("a token"))
            .collect();
        assert_eq!(found, steps, "prompt {}", run["prompt"]);
        let text = tokenizer.decode(&[prompt, found].concat());
        let text = text.expect("decodes");
        let parsed = Grammar::load().check(&text);
        let parsed = parsed.unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert!(parsed >= sentences, "{parsed} sentences in {text}");
    };
    // Past the pushes of 64 and 128 tokens; a software adapter takes a quarter of a second a token while others test.
    check(&oracle["from_bos"], 140, 8);
    for run in oracle["from_prompts"].as_array().expect("runs") {
        check(run, 20, 1);
    }
}

#[test]
fn the_trained_models_loss_is_pytorchs() {
    let ctx = Context::new().expect("an adapter");
    let model = Hyena::load(&ctx, &trained()).expect("loads");
    let held_out = &oracle()["held_out"];
    let ids = ids(&held_out["ids"]);
    let mut session = model.session(ids.len()).expect("a session");
    let logits = session.feed_all(&ids).expect("feeds");
    let logits = logits.to_vec::<f32>().expect("reads");
    let vocab = session.vocab_size();
    let nll = ids[1..].iter().zip(logits.chunks_exact(vocab));
    let nll = nll.map(|(&id, row)| {
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        sum.ln() - f64::from(row[id as usize])
    });
    let mean = nll.sum::<f64>() / (ids.len() - 1) as f64;
    let expected = held_out["mean_nll"].as_f64().expect("a number");
    assert!((mean - expected).abs() < 1e-4, "{mean} for {expected}");
}
