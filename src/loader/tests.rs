//! Tests on files from outside the repository: the folder named by FLASHWAVE_DATA.

use std::path::PathBuf;

use super::*;

/// The data folder; without one, says that the test is skipped.
fn data(test: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("FLASHWAVE_DATA") else {
        eprintln!("skipped: {test}: FLASHWAVE_DATA is not set");
        return None;
    };
    Some(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(folder)
            .join("weights"),
    )
}

const TOK: &str = "stories260K/tok512.bin";
const GGUF_V1: &str = "stories260K_gguf/tinyllamas-stories-260k-f32.gguf";
const GGUF_V3: &str = "stories260K_gguf/stories260K-f32-v3.gguf";

fn llama2c(data: &Path) -> Weights {
    let tokenizer = data.join(TOK);
    Weights::open_with_tokenizer(data.join("stories260K/stories260K.bin"), Some(&tokenizer))
        .unwrap()
}

/// Rows of each head from half-split order to interleaved pairs.
fn interleave(rows: &[f32], width: usize, head_dim: usize) -> Vec<f32> {
    let row = |head: usize, channel: usize| {
        let from = (channel % 2) * (head_dim / 2) + channel / 2;
        &rows[(head * head_dim + from) * width..][..width]
    };
    let heads = rows.len() / width / head_dim;
    (0..heads)
        .flat_map(|h| (0..head_dim).flat_map(move |c| row(h, c).to_vec()))
        .collect()
}

#[test]
fn weights_cross_threads() {
    fn crosses<T: Send + Sync>() {}
    crosses::<Weights>();
}

#[test]
fn formats_agree() {
    let Some(data) = data("loader::formats_agree") else {
        return;
    };
    let bin = llama2c(&data);
    let hf = Weights::open(data.join("stories260K_hf")).unwrap();
    let v1 = Weights::open(data.join(GGUF_V1)).unwrap();
    let v3 = Weights::open(data.join(GGUF_V3)).unwrap();
    assert!(hf.tokenizer().is_none());

    let config = bin.config().llama().unwrap().clone();
    assert_eq!(
        (config.hidden_size, config.layers, config.vocab_size),
        (64, 5, 512)
    );
    let mut expected = config.clone();
    expected.tie_word_embeddings = false;
    assert_eq!(v1.config().llama().unwrap(), &expected);
    assert_eq!(v3.config().llama().unwrap(), &expected);
    expected.tie_word_embeddings = true;
    expected.rope.layout = crate::kernels::rope::RopeLayout::HalfSplit;
    assert_eq!(hf.config().llama().unwrap(), &expected);

    assert_eq!(bin.names().count(), 2 + 9 * 5);
    assert!(bin.names().eq(hf.names()));
    for name in bin.names() {
        let values = bin.tensor(name).unwrap().to_f32().unwrap();
        assert_eq!(v1.tensor(name).unwrap().to_f32().unwrap(), values, "{name}");
        assert_eq!(v3.tensor(name).unwrap().to_f32().unwrap(), values, "{name}");
        let mut half_split = hf.tensor(name).unwrap().to_f32().unwrap();
        if name.contains("q_proj") || name.contains("k_proj") {
            half_split = interleave(&half_split, 64, 8);
        }
        assert_eq!(half_split, values, "{name}");
    }
    let head = v1.tensor("lm_head.weight").unwrap().to_f32().unwrap();
    assert_eq!(
        head,
        bin.tensor("model.embed_tokens.weight")
            .unwrap()
            .to_f32()
            .unwrap()
    );
}

#[test]
fn tokenizers_give_the_expected_ids_and_text() {
    let Some(data) = data("loader::tokenizers_give_the_expected_ids_and_text") else {
        return;
    };
    let bin = llama2c(&data);
    let tokenizer = data.join(TOK);
    let hf = Weights::open_with_tokenizer(data.join("stories260K_hf"), Some(&tokenizer)).unwrap();
    let v1 = Weights::open(data.join(GGUF_V1)).unwrap();
    let v3 = Weights::open(data.join(GGUF_V3)).unwrap();
    for weights in [&bin, &hf, &v1, &v3] {
        let tokenizer = weights.tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), 512);
        for case in ["bos", "once", "dog"] {
            let file = data.join(format!("stories260K/expected_greedy_{case}.json"));
            let expected: serde_json::Value =
                serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let list =
                |key: &str| -> Vec<u32> { serde_json::from_value(expected[key].clone()).unwrap() };
            let (ids, prompt) = (list("ids"), list("prompt_ids"));
            let text = expected["text"].as_str().unwrap();
            assert_eq!(
                tokenizer
                    .encode(expected["prompt"].as_str().unwrap())
                    .unwrap(),
                prompt[1..]
            );
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            assert_eq!(tokenizer.decode(&ids[1..]).unwrap(), text, "without BOS");
            let mut stream = tokenizer.stream();
            let mut streamed: String = ids
                .iter()
                .filter_map(|&id| stream.push(id).unwrap())
                .collect();
            streamed.extend(stream.finish().unwrap());
            assert_eq!(streamed, text);
        }
        for text in [
            "",
            " ",
            "  two  spaces ",
            "naïve – 日本語 🦀\n\ttab",
            "\u{0}",
            "<s>x",
        ] {
            let ids = tokenizer.encode(text).unwrap();
            if !text.contains("<s>") {
                assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            }
        }
        assert!(
            tokenizer
                .decode(&[512])
                .unwrap_err()
                .to_string()
                .contains("512")
        );
    }
}
