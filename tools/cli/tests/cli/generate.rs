//! `flashwave generate`, on trained weights of each format and on the embedded model.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{fail, flashwave, folder, succeed};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("parses")
}

/// Ids as `--ids` prints them.
fn line(ids: &Value) -> String {
    let ids = ids.as_array().expect("ids").iter().map(Value::to_string);
    ids.collect::<Vec<_>>().join(" ")
}

/// `$FLASHWAVE_DATA/weights`; a relative path is taken from the workspace's root.
fn weights_folder(test: &str) -> Option<PathBuf> {
    let Some(data) = std::env::var_os("FLASHWAVE_DATA").filter(|d| !d.is_empty()) else {
        eprintln!("skipped: {test}: FLASHWAVE_DATA is not set");
        return None;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Some(root.join(data).join("weights"))
}

#[test]
fn the_embedded_model_is_the_default_and_ids_are_the_last_line() {
    let expected =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/default-model/expected.json");
    let run = &json(&expected)["from_prompts"][0];
    let (prompt, ids) = (run["prompt"].as_str().expect("text"), line(&run["ids"]));
    let count = 24;
    let text = succeed(&[
        "generate",
        "--prompt",
        prompt,
        "--max-tokens",
        &count.to_string(),
        "--ids",
    ]);
    let last = text.lines().last().unwrap_or_default();
    assert_eq!(last.split(' ').count(), count, "{text}");
    assert!(ids.starts_with(last), "{text}\n{ids}");
    let story = text.lines().next().unwrap_or_default();
    let whole = run["text"].as_str().expect("text");
    assert!(
        story
            .strip_prefix(prompt)
            .is_some_and(|rest| !rest.is_empty() && whole.starts_with(rest)),
        "{story}\n{whole}"
    );
}

#[test]
fn a_hyena_generates_as_a_llama_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/hyena-model");
    let run = &json(&folder.join("expected.json"))["from_prompts"][1];
    let (prompt, ids) = (run["prompt"].as_str().expect("text"), line(&run["ids"]));
    let model = folder.to_string_lossy();
    let own = ["generate", "--model", &model, "--prompt", prompt];
    let text = succeed(&[&own[..], &["--max-tokens", "16", "--ids"]].concat());
    let last = text.lines().last().unwrap_or_default();
    assert_eq!(last.split(' ').count(), 16, "{text}");
    assert!(ids.starts_with(last), "{text}\n{ids}");
    let error = fail(&[&own[..], &["--kv", "f16"]].concat());
    assert!(error.contains("kv: f16"), "{error}");
}

#[test]
fn every_format_gives_the_expected_ids() {
    let Some(weights) = weights_folder("every_format_gives_the_expected_ids") else {
        return;
    };
    let at = |path: &str| weights.join(path).to_string_lossy().into_owned();
    let bos = json(&weights.join("stories260K/expected_greedy_bos.json"));
    // The first id is BOS, which `--ids` leaves out.
    let all = line(&bos["ids"]);
    let (_, ids) = all.split_once(' ').expect("ids");
    let tokenizer = at("stories260K/tok512.bin");
    let generate = |model: &str, count: usize, more: &[&str]| {
        let model = at(model);
        let count = count.to_string();
        let own = ["generate", "--model", &model, "--max-tokens", &count];
        succeed(&[&own[..], &["--ids"], more].concat())
    };
    for (model, count, more) in [
        ("stories260K_hf", 200, &["--tokenizer", &*tokenizer][..]),
        ("stories260K_hf", 30, &[]),
        (
            "stories260K/stories260K.bin",
            30,
            &["--tokenizer", &*tokenizer],
        ),
        ("stories260K/stories260K.bin", 30, &[]),
        ("stories260K_gguf/stories260K-f32-v3.gguf", 30, &[]),
        ("stories260K_gguf/tinyllamas-stories-260k-f32.gguf", 30, &[]),
    ] {
        let text = generate(model, count, more);
        let last = text.lines().last().unwrap_or_default();
        assert_eq!(last.split(' ').count(), count, "{model}: {text}");
        assert!(ids.starts_with(last), "{model}: {text}\n{ids}");
        let silent = more.is_empty() && !model.ends_with(".gguf");
        assert_eq!(text.lines().count() == 1, silent, "{model}: {text}");
    }

    // The same prompt as text and as ids; BOS comes before either.
    let once = json(&weights.join("stories260K/expected_greedy_once.json"));
    let prompt = once["prompt"].as_str().expect("text");
    let begin: Vec<String> = once["prompt_ids"].as_array().expect("ids")[1..]
        .iter()
        .map(Value::to_string)
        .collect();
    let all = line(&once["ids"]);
    for more in [["--prompt", prompt], ["--prompt-ids", &begin.join(",")]] {
        let text = generate("stories260K_gguf/stories260K-f32-v3.gguf", 20, &more);
        let last = text.lines().last().unwrap_or_default();
        assert!(
            all.contains(&format!("{} {last}", begin.join(" "))),
            "{more:?}: {text}\n{all}"
        );
    }

    let no_tokenizer = fail(&[
        "generate",
        "--model",
        &at("stories260K_hf"),
        "--prompt",
        "Once",
    ]);
    assert!(
        no_tokenizer.contains("--prompt: ") && no_tokenizer.contains("--prompt-ids"),
        "{no_tokenizer}"
    );
}

#[test]
fn a_seed_repeats_the_text() {
    let draw = |seed: &str| {
        succeed(&[
            "generate",
            "--temperature",
            "0.9",
            "--max-tokens",
            "16",
            "--seed",
            seed,
        ])
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn bad_arguments_are_named() {
    let garbage = folder("generate-errors").join("garbage.gguf");
    std::fs::write(&garbage, b"GGUF\xff\xff\xff\xff").expect("written");
    let garbage = garbage.to_string_lossy();
    for (arguments, parts) in [
        (
            &["--model", "no/such/model"][..],
            ["--model", "no/such/model"],
        ),
        (&["--model", &garbage], ["--model", "garbage.gguf"]),
        (&["--tokenizer", "no/such/file"], ["--tokenizer", "--model"]),
        (&["--temperature", "-1"], ["--temperature", "-1"]),
        (&["--temperature", "nan"], ["--temperature", "NaN"]),
        (&["--temperature", "hot"], ["--temperature", "hot"]),
        (&["--temperature", "1", "--top-k", "0"], ["--top-k", "0"]),
        (
            &["--temperature", "1", "--top-p", "1.5"],
            ["--top-p", "1.5"],
        ),
        (
            &["--temperature", "1", "--min-p", "-0.1"],
            ["--min-p", "-0.1"],
        ),
        (
            &["--repetition-penalty", "0"],
            ["--repetition-penalty", "0"],
        ),
        (&["--prompt-ids", "1,512"], ["512", "0 to 511"]),
        (
            &["--prompt", "a", "--prompt-ids", "1"],
            ["--prompt", "--prompt-ids"],
        ),
        (&["--max-tokens", "0"], ["--max-tokens", "0"]),
        (&["--max-tokens", "100000"], ["--max-tokens", "512"]),
        (&["--dtype", "i8"], ["--dtype", "f32, f16, bf16"]),
    ] {
        let error = fail(&[&["generate"][..], arguments].concat());
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{parts:?}\n{error}"
        );
    }
    // What was asked for is checked before anything is written.
    let done = flashwave(&["generate", "--prompt", "Once", "--temperature", "-1"]);
    assert!(done.stdout.is_empty());
}
