//! `flashwave tune`: what it stores, what later runs make of that, and what it says to bad calls.

use crate::common::{fail, folder, succeed};

fn json(text: &str) -> Vec<serde_json::Value> {
    let lines = text.lines();
    let parsed = lines.map(|l| serde_json::from_str(l).expect("a JSON line"));
    parsed.collect()
}

#[test]
fn tunes_within_the_budget_and_stores_what_it_found() {
    let cache = folder("tune");
    std::fs::remove_dir_all(&cache).ok();
    let path = cache.to_string_lossy();
    let arguments = [
        "tune", "softmax", "--budget", "2", "--cache", &*path, "--json",
    ];
    let started = std::time::Instant::now();
    let lines = json(&succeed(&[&arguments[..], &["--dry-run"]].concat()));
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    let (row, sum) = (&lines[0], lines.last().expect("a summary"));
    assert!(
        row["work"]
            .as_str()
            .is_some_and(|w| w.starts_with("softmax "))
    );
    assert!(
        row["default_us"].as_f64().is_some_and(|us| us > 0.0),
        "{row}"
    );
    assert!(row["candidates"].as_u64().is_some_and(|n| n > 1), "{row}");
    assert!(sum["worst"].as_f64().is_some_and(|s| s > 0.9), "{sum}");
    assert!(
        sum["geometric_mean"].as_f64().is_some_and(|s| s > 0.9),
        "{sum}"
    );
    let stored = || {
        let files = std::fs::read_dir(&cache).into_iter().flatten().flatten();
        let names = files.map(|f| f.file_name().to_string_lossy().into_owned());
        names
            .filter(|n| n.starts_with("tuned_") && n.ends_with(".json"))
            .collect::<Vec<_>>()
    };
    assert!(stored().is_empty(), "a dry run stores nothing");

    succeed(&arguments);
    let files = stored();
    assert_eq!(files.len(), 1, "{files:?}");
    let text = std::fs::read_to_string(cache.join(&files[0])).expect("the file");
    let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(file["version"], 1);
    let winners = file["winners"].as_object().expect("winners");
    assert!(
        winners.keys().all(|k| k.starts_with("softmax/softmax ")),
        "{text}"
    );

    // A file that is none is no error.
    std::fs::write(cache.join(&files[0]), "{\"version\": 1, \"win").expect("writes");
    let bench = ["bench", "softmax", "--quick", "--cache", &*path, "--json"];
    assert_eq!(json(&succeed(&bench)).len(), 1);
    succeed(&[&bench[..], &["--tuning", "off"]].concat());
}

#[test]
fn bad_calls_name_what_is_allowed() {
    for (arguments, message) in [
        (
            vec!["tune", "rope"],
            "FAMILY: rope; allowed: attention, cache",
        ),
        (
            vec!["tune", "norm", "--budget", "-1"],
            "--budget: -1; allowed: seconds",
        ),
        (
            vec!["tune", "norm", "--only", "nothing"],
            "--only: nothing; allowed:",
        ),
        (
            vec!["tune", "--tuning", "fast"],
            "off, stored, shuffled:SEED, or seconds",
        ),
    ] {
        let errors = fail(&arguments);
        assert!(errors.contains(message), "{errors}");
    }
    let missing = fail(&["tune", "--model", "/nowhere/at/all"]);
    assert!(missing.contains("/nowhere/at/all"), "{missing}");
}
