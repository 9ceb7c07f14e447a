//! The embedded model: what it writes parses by its grammar and is what PyTorch said in f64.

use flashwave::Context;
use flashwave::model::{Llama, Sampling, embedded};
use kernels_tests::grammar::Grammar;
use serde_json::Value;

fn expected() -> Value {
    serde_json::from_str(include_str!("../../assets/default-model/expected.json")).expect("parses")
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("ids")
        .iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

fn generate(model: &Llama, prompt: &[u32], sampling: &Sampling, tokens: usize) -> Vec<u32> {
    let generation = model
        .generate(prompt, sampling)
        .expect("starts")
        .ignore_eos();
    generation
        .take(tokens)
        .map(|t| t.expect("a token"))
        .collect()
}

#[test]
fn a_greedy_continuation_parses_and_is_the_expected_one() {
    let ctx = Context::new().expect("an adapter");
    let weights = embedded::weights().expect("opens");
    let model = Llama::load(&ctx, &weights).expect("loads");
    let tokenizer = weights.tokenizer().expect("a tokenizer");
    let expected = expected();
    let check = |run: &Value, most: usize, sentences: usize| {
        let prompt = ids(&run["prompt_ids"]);
        let mut steps = ids(&run["ids"]);
        steps.truncate(most);
        let found = generate(&model, &prompt, &Sampling::greedy(), steps.len());
        assert_eq!(found, steps, "prompt {}", run["prompt"]);
        let text = tokenizer
            .decode(&[prompt, found].concat())
            .expect("decodes");
        let parsed = Grammar::load()
            .check(&text)
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert!(parsed >= sentences, "{parsed} sentences in {text}");
    };
    check(&expected["from_bos"], usize::MAX, 8);
    // A software adapter takes 30 ms a token: the beginnings of the others.
    for run in expected["from_prompts"].as_array().expect("runs") {
        check(run, 64, 3);
    }
}

#[test]
fn sampled_text_differs_by_seed_and_repeats_by_seed() {
    let ctx = Context::new().expect("an adapter");
    let weights = embedded::weights().expect("opens");
    let model = Llama::load(&ctx, &weights).expect("loads");
    let bos: Vec<u32> = weights.config().bos_token_id().into_iter().collect();
    let draw = |seed| generate(&model, &bos, &Sampling::temperature(0.8).seed(seed), 60);
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let text = weights
        .tokenizer()
        .expect("a tokenizer")
        .decode(&draw(3))
        .expect("decodes");
    Grammar::load()
        .check(&text)
        .unwrap_or_else(|e| panic!("{e}\n{text}"));
    // The device's top-k and the host's agree.
    let few = |s: Sampling| generate(&model, &bos, &s.seed(9).top_k(5), 40);
    assert_eq!(
        few(Sampling::temperature(1.0)),
        few(Sampling::temperature(1.0).repetition_penalty(1.0 + 1e-7))
    );
}
