//! The program's subcommands and what it says to bad calls.

use std::process::{Command, Stdio};

use crate::common::{Tensor, fail, folder, save, succeed};
use flashwave::DType::{F16, F32};
use safetensors::Dtype;

#[test]
fn devices_marks_the_one_chosen() {
    let text = succeed(&["devices"]);
    assert_eq!(
        text.lines().filter(|l| l.starts_with("* ")).count(),
        2,
        "{text}"
    );
    assert!(text.contains("driver") && text.contains("a binding"));
}

#[test]
fn verify_reports_every_group_and_the_sum() {
    let text = succeed(&[
        "verify",
        "elementwise",
        "--quick",
        "--seed",
        "3",
        "--checks",
        "both",
    ]);
    assert_eq!(
        text.lines().filter(|l| l.starts_with("adapter: ")).count(),
        2
    );
    assert_eq!(text.matches("elementwise silu ").count(), 2, "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with(" passed, 0 failed"), "{text}");
}

#[test]
fn bench_prints_json_lines_and_records_them() {
    let record = folder("bench").join("record.csv");
    let _ = std::fs::remove_file(&record);
    let path = record.to_string_lossy();
    let arguments = [
        "bench",
        "elementwise",
        "--quick",
        "--only",
        "silu f32",
        "--json",
        "--record",
    ];
    let text = succeed(&[&arguments[..], &[&*path]].concat());
    let line: serde_json::Value = serde_json::from_str(&text).expect("one JSON line");
    assert_eq!(line["by"], "flashwave");
    assert!(
        line["us"].as_f64().is_some_and(|us| us > 0.0) && line["tbps"].is_f64(),
        "{text}"
    );
    assert!(line["share"].is_f64() && line["recipe"].as_str().is_some_and(|r| r.contains("WG=")));
    let csv = std::fs::read_to_string(&record).expect("the record");
    assert!(
        csv.starts_with("device,") && csv.lines().count() == 2,
        "{csv}"
    );
}

#[test]
fn the_list_names_inputs_types_parameters_and_outputs() {
    let text = succeed(&["run", "--list"]);
    for part in [
        "silu: ",
        "input  gate",
        "f32 f16 bf16",
        "approximate=none|tanh",
        "output out",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let one = succeed(&["run", "gelu", "--list"]);
    assert!(
        one.starts_with("gelu: ") && !one.contains("silu: "),
        "{one}"
    );
}

#[test]
fn errors_name_what_was_wrong_and_what_is_allowed() {
    let folder = folder("errors");
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (good, out) = (at("good.safetensors"), at("out.safetensors"));
    let x = Tensor::float("x", F32, &[4], &[1.0; 4]);
    let with = |name: &str, tensors: &[Tensor]| {
        let path = at(name);
        save(path.as_ref(), tensors);
        path
    };
    save(good.as_ref(), std::slice::from_ref(&x));
    let integers = Tensor {
        dtype: Dtype::I32,
        ..x.clone()
    };
    let other = Tensor::float("y", F32, &[4], &[1.0; 4]);
    let empty = Tensor::float("x", F16, &[2, 0], &[]);
    let a = Tensor::float("a", F32, &[4], &[1.0; 4]);
    let b = Tensor::float("b", F32, &[2, 2], &[1.0; 4]);
    let integers = with("integers.safetensors", &[integers]);
    let unknown = with("unknown.safetensors", &[x.clone(), other]);
    let empty = with("empty.safetensors", &[empty]);
    let mismatched = with("mismatched.safetensors", &[a, b]);
    let garbage = at("garbage.safetensors");
    std::fs::write(&garbage, b"\xff\xff\xff\xff\xff\xff\xff\x7fnothing").expect("written");
    let kernel = |kernel: &str, input: &str, sets: &[&str]| {
        let mut arguments = vec!["run", kernel, "--input", input, "--output", &out];
        arguments.extend(sets.iter().flat_map(|s| ["--set", s]));
        fail(&arguments)
    };
    for (error, parts) in [
        (kernel("sliu", &good, &[]), ["KERNEL: sliu", "silu, gelu"]),
        (
            kernel("silu", &integers, &[]),
            ["input x: i32", "f32, f16, bf16"],
        ),
        (
            kernel("silu", &unknown, &[]),
            ["input y: unknown", "allowed: x"],
        ),
        (kernel("silu", &empty, &[]), ["input x", "[2, 0]"]),
        (
            kernel("swiglu", &good, &[]),
            ["input x: unknown", "gate, up"],
        ),
        (
            kernel("add", &mismatched, &[]),
            ["input b: shape [2, 2]", "[4]"],
        ),
        (
            kernel("silu", &at("missing.safetensors"), &[]),
            ["missing.safetensors", "No such file"],
        ),
        (
            kernel("silu", &garbage, &[]),
            ["garbage.safetensors", "header"],
        ),
        (
            kernel("silu", &good, &["alpha=1"]),
            ["--set alpha: unknown", "dtype"],
        ),
        (
            kernel("silu", &good, &["dtype=i8"]),
            ["dtype: i8", "f32, f16, bf16"],
        ),
        (
            kernel("silu", &good, &["dtype"]),
            ["--set: dtype", "NAME=VALUE"],
        ),
        (
            kernel("gelu", &good, &["dtype=f32", "dtype=f16"]),
            ["--set dtype", "twice"],
        ),
        (
            fail(&["verify", "nonsense"]),
            ["FAMILY: nonsense", "elementwise"],
        ),
        (
            fail(&["bench", "nonsense"]),
            ["FAMILY: nonsense", "elementwise"],
        ),
        (
            fail(&["ceilings", "--checks", "both"]),
            ["--checks: both", "on or off"],
        ),
        (
            fail(&["--adapter", "no such card", "verify"]),
            ["no usable GPU adapter", "no such card"],
        ),
        (fail(&["run", "silu"]), ["required", "--input"]),
        (fail(&["--backend", "cuda", "devices"]), ["cuda", "vulkan"]),
        (fail(&[]), ["Usage", "verify"]),
    ] {
        assert!(
            parts.iter().all(|p| error.contains(p)),
            "{parts:?}\n{error}"
        );
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flashwave"))
        .args(["run", "--list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Closed before anything is read: the program's first write fails.
    drop(child.stdout.take());
    let done = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        !errors.contains("panicked") && !errors.contains("error"),
        "{errors}"
    );
}

#[test]
fn sparsity_prints_densities_and_draws() {
    let png = folder("sparsity").join("layout.png");
    let path = png.to_string_lossy();
    let arguments = [
        "sparsity",
        "--layout",
        "s2:stride=4,window=2",
        "--heads",
        "4",
    ];
    let more = ["--length", "1000", "--block", "32", "--png", &*path];
    let text = succeed(&[&arguments[..], &more[..]].concat());
    for part in [
        "head 3: density 0.",
        "density 0.",
        "the heads cover the context together",
        "a cache keeps ",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let bytes = std::fs::read(&png).expect("the picture");
    assert!(bytes.starts_with(b"\x89PNG"), "{} bytes", bytes.len());
    for (arguments, part) in [
        (&["--layout", "s2:stride=0"][..], "stride: [0]; allowed:"),
        (
            &["--layout", "dense", "--block", "48"],
            "block: 48; allowed: 16, 32, 64 or 128",
        ),
        (
            &["--layout", "dense", "--heads", "0"],
            "heads: 0; allowed: 1 to 65536",
        ),
        (
            &["--layout", "dense", "--kv-heads", "3"],
            "kv_heads: 3; allowed:",
        ),
        (
            &["--layout", "dense", "--png", "x.jpg"],
            "--png: x.jpg; allowed:",
        ),
    ] {
        let error = fail(&[&["sparsity"], arguments].concat());
        assert!(error.contains(part), "{error}");
    }
}
