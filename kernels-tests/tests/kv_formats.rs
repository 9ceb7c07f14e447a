//! The embedded model with keys and values cached in every format: no further from the exact logits than twice what naive
//! arithmetic over the same cache is, by chunk and token by token.

use flashwave::kernels::attention::KvFormat;
use flashwave::model::{Llama, LlamaOptions, embedded};
use flashwave::reference::llama::Llama as Reference;
use flashwave::{Context, DType};
use kernels_tests::tolerance::{Ulps, check};

const PROMPT: usize = 60;
const TOKENS: usize = 70;

#[test]
fn logits_are_those_of_the_cache_in_its_format() {
    let ctx = Context::new().expect("an adapter");
    let weights = embedded::weights().expect("opens");
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * i * 31 % 509).collect();
    let mut exact = Reference::<f64>::new(&weights, DType::F32).expect("loads");
    let exact: Vec<f64> = ids.iter().flat_map(|&id| exact.feed(id)).collect();
    let vocab = exact.len() / TOKENS;
    let mut whole = None;
    for format in KvFormat::ALL {
        let mut naive = Reference::<f32>::new(&weights, DType::F32)
            .and_then(|r| r.cache(format))
            .expect("loads");
        let naive: Vec<f32> = ids.iter().flat_map(|&id| naive.feed(id)).collect();
        let options = LlamaOptions {
            weights: Some(DType::F32),
            kv: Some(format),
            ..LlamaOptions::default()
        };
        let model = Llama::load_with(&ctx, &weights, options, &mut |_| ()).expect("loads");
        let mut session = model.session(TOKENS).expect("a session");
        let bytes = session.cache().bytes();
        let whole = *whole.get_or_insert(bytes);
        assert!(bytes <= whole, "{format}: {bytes} bytes, f32 {whole}");
        let mut found = session
            .feed_all(&ids[..PROMPT])
            .and_then(|logits| logits.to_vec::<f32>())
            .expect("feeds");
        for &id in &ids[PROMPT..] {
            let logits = session.feed(&[id]).and_then(|l| l.to_vec::<f32>());
            found.extend(logits.expect("feeds"));
        }
        for (what, range) in [("prompt", 0..PROMPT), ("tokens", PROMPT..TOKENS)] {
            let range = range.start * vocab..range.end * vocab;
            let (found, exact) = (&found[range.clone()], &exact[range.clone()]);
            check(found, exact, &naive[range], Ulps(0.0))
                .unwrap_or_else(|e| panic!("{format}, {what}: {e}"));
        }
    }
}
