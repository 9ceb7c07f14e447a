//! The two commands of the README: see a model write, and see the tests pass.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::adapter::quieten;
use crate::install::ensure_adapter;

/// Names the folder of files from outside the repository that some tests need.
const DATA: &str = "FLASHWAVE_DATA";

/// What the demo asks of `flashwave generate`, each unless the person gives that flag; no `--model` means the
/// embedded one. The seed is fixed, so that what a person sees is what we have seen.
const DEMO: [(&str, &str); 4] = [
    ("--prompt", "Once upon a time"),
    ("--max-tokens", "200"),
    ("--temperature", "0.8"),
    ("--seed", "1"),
];

/// Flags that take the place of one in [`DEMO`].
const INSTEAD: [(&str, &str); 1] = [("--prompt-ids", "--prompt")];

/// Builds the command-line program and has the embedded model write a story; `passed` goes to `flashwave generate`.
///
/// # Errors
/// Where no adapter can be had, or the build or the program fails.
pub fn demo(passed: &[OsString]) -> Result<()> {
    ensure_adapter()?;
    eprintln!("Building flashwave (some minutes the first time).");
    // In the profile and over the packages that this program and the tests are built in: wgpu, most of the work,
    // is then built once for all three. The profile optimises; see Cargo.toml.
    let program = ["--bin", "flashwave"];
    finish(cargo("build").args(program))?;
    // `cargo run` because it knows the target folder; the working folder stays the person's, so that a `--model`
    // of theirs is found.
    finish(
        cargo("run")
            .arg("--quiet")
            .args(program)
            .args(["--", "generate"])
            .args(demo_args(passed)),
    )
}

/// The demo's arguments with those that the person gave in their place.
fn demo_args(passed: &[OsString]) -> Vec<OsString> {
    let replaces = |given: &str, flag: &str| given == flag || INSTEAD.contains(&(given, flag));
    let given = |flag: &str| passed.iter().any(|arg| replaces(flag_name(arg), flag));
    let defaults = DEMO
        .iter()
        .filter(|(flag, _)| !given(flag))
        .flat_map(|&(flag, value)| [flag, value]);
    defaults
        .map(OsString::from)
        .chain(passed.iter().cloned())
        .collect()
}

/// The flag of `--flag` or `--flag=value`.
fn flag_name(arg: &OsStr) -> &str {
    let text = arg.to_str().unwrap_or_default();
    text.split_once('=').map_or(text, |(flag, _)| flag)
}

/// Runs the tests of every member; `passed` goes to `cargo test`.
///
/// # Errors
/// Where no adapter can be had, `FLASHWAVE_DATA` names no folder, or a test fails.
pub fn test(passed: &[OsString]) -> Result<()> {
    let mut command = cargo("test");
    match std::env::var_os(DATA).filter(|value| !value.is_empty()) {
        Some(value) => {
            let folder = data_folder(Path::new(&value))?;
            eprintln!("{DATA}: {}", folder.display());
            command.env(DATA, folder);
        }
        None => {
            eprintln!(
                "{DATA} is not set: tests that need files from outside the repository will report 'skipped'."
            );
            command.env_remove(DATA);
        }
    }
    ensure_adapter()?;
    finish(command.args(test_args(passed)))
}

/// `cargo test` runs each test program in its own package's folder, so a relative path is resolved here.
fn data_folder(value: &Path) -> Result<PathBuf> {
    let named = || format!("{DATA}={} cannot be read", value.display());
    if !value.metadata().with_context(named)?.is_dir() {
        bail!("{DATA}={} is not a folder", value.display());
    }
    std::path::absolute(value).with_context(named)
}

/// All packages, unless the person picks some.
fn test_args(passed: &[OsString]) -> Vec<OsString> {
    let own = passed.split(|arg| arg == "--").next().unwrap_or_default();
    let picks = |arg: &OsString| flag_name(arg) == "--package" || flag_name(arg).starts_with("-p");
    let all = if own.iter().any(picks) {
        None
    } else {
        Some("--workspace".into())
    };
    all.into_iter().chain(passed.iter().cloned()).collect()
}

/// A `cargo` of the toolchain that runs this program, on this repository wherever the person stands in it.
pub fn cargo(subcommand: &str) -> Command {
    // Cargo sets it for a program that it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .arg(subcommand)
        .arg("--manifest-path")
        .arg(root().join("Cargo.toml"));
    quieten(&mut command);
    command
}

/// The repository's folder.
pub fn root() -> PathBuf {
    // Cargo sets it for a program that it runs.
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = PathBuf::from(here);
    here.ancestors().nth(2).map_or(here.clone(), Path::to_owned)
}

/// Cargo's target folder.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Shows a command, runs it to its end, and fails as it does.
pub fn finish(command: &mut Command) -> Result<()> {
    // By its name, as a person types it: the path is long and says nothing.
    let name = Path::new(command.get_program())
        .file_stem()
        .unwrap_or_default();
    let words = std::iter::once(name).chain(command.get_args());
    let line: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    let line = line.join(" ");
    eprintln!("+ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {line}"))?;
    if !status.success() {
        bail!("failed ({status}): {line}");
    }
    Ok(())
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_given_flag_replaces_the_demos_own() {
        let own = demo_args(&[]);
        assert_eq!(own.len(), 2 * DEMO.len());
        assert!(
            !own.contains(&"--model".into()),
            "the demo is of the embedded model"
        );
        for given in [&["--seed", "7"][..], &["--seed=7"]] {
            let args = demo_args(&os(given));
            assert_eq!(
                args.iter().filter(|arg| flag_name(arg) == "--seed").count(),
                1,
                "{args:?}"
            );
            assert!(args.ends_with(&os(given)));
            assert!(args.contains(&"--prompt".into()));
        }
        assert!(!demo_args(&os(&["--prompt-ids", "1,2"])).contains(&"--prompt".into()));
        assert_eq!(demo_args(&os(&["--ids"])).len(), own.len() + 1);
    }

    #[test]
    fn all_packages_are_tested_unless_some_are_picked() {
        assert_eq!(test_args(&[]), os(&["--workspace"]));
        assert_eq!(
            test_args(&os(&["--locked", "rope"])),
            os(&["--workspace", "--locked", "rope"])
        );
        assert_eq!(test_args(&os(&["-p", "xtask"])), os(&["-p", "xtask"]));
        assert_eq!(test_args(&os(&["-pxtask"])), os(&["-pxtask"]));
        assert_eq!(
            test_args(&os(&["--package=xtask"])),
            os(&["--package=xtask"])
        );
        assert_eq!(
            test_args(&os(&["--", "-p"])),
            os(&["--workspace", "--", "-p"])
        );
    }

    #[test]
    fn a_data_folder_is_made_absolute_or_refused_by_name() {
        assert!(data_folder(Path::new(".")).unwrap().is_absolute());
        let error = data_folder(Path::new("no/such/folder")).unwrap_err();
        assert!(
            format!("{error:#}").contains("FLASHWAVE_DATA=no/such/folder cannot be read"),
            "{error:#}"
        );
        let error = data_folder(Path::new("Cargo.toml")).unwrap_err();
        assert!(
            format!("{error:#}").contains("is not a folder"),
            "{error:#}"
        );
    }

    #[test]
    fn shown_commands_can_be_typed() {
        assert_eq!(quoted("--max-tokens"), "--max-tokens");
        assert_eq!(quoted("Once upon"), "'Once upon'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
