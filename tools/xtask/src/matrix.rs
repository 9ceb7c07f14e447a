//! The correctness matrix on every implementation of WebGPU's shaders that this system can have, a column each.
//!
//! A column's programs print into `benches/record/matrix/<column>.txt`: one run of `flashwave verify` a family, under a
//! time limit. The README's table is made of all such files, so that columns of other machines (a card) stay in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::install;
use crate::tasks::{cargo, finish, root, target_folder};
use crate::web;

/// What runs a family's cases and prints as `flashwave verify` does.
enum Program {
    /// `flashwave` with these options.
    Flashwave(&'static [&'static str]),
    /// The page's module in Node over Dawn, with these options (`tools/web/dawn`).
    Dawn(&'static [&'static str]),
}

/// An implementation that the cases run on.
struct Column {
    /// The name of its record.
    name: &'static str,
    /// What the table calls it.
    title: &'static str,
    /// Debian's packages of it.
    packages: &'static [&'static str],
    /// What makes the programs choose it.
    environment: &'static [(&'static str, &'static str)],
    program: Program,
    /// A file without which it is not there.
    file: Option<&'static str>,
}

const LAVAPIPE: &str = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json";
const SWIFTSHADER: &str = "/usr/lib/chromium/vk_swiftshader_icd.json";
const MESA: &[&str] = &["libvulkan1", "mesa-vulkan-drivers"];

const COLUMNS: &[Column] = &[
    Column {
        name: "lavapipe",
        title: "lavapipe, subgroups of 8",
        packages: MESA,
        environment: &[
            ("VK_DRIVER_FILES", LAVAPIPE),
            ("FLASHWAVE_BACKEND", "vulkan"),
        ],
        program: Program::Flashwave(&[]),
        file: Some(LAVAPIPE),
    },
    Column {
        name: "lavapipe-portable",
        title: "lavapipe, portable tier, shaders that check bounds",
        packages: MESA,
        environment: &[
            ("VK_DRIVER_FILES", LAVAPIPE),
            ("FLASHWAVE_BACKEND", "vulkan"),
        ],
        program: Program::Flashwave(&["--portable", "--checks", "on"]),
        file: Some(LAVAPIPE),
    },
    Column {
        name: "swiftshader",
        title: "SwiftShader, subgroups of 4",
        packages: &["libvulkan1", "chromium"],
        environment: &[
            ("VK_DRIVER_FILES", SWIFTSHADER),
            ("FLASHWAVE_BACKEND", "vulkan"),
        ],
        program: Program::Flashwave(&[]),
        file: Some(SWIFTSHADER),
    },
    Column {
        name: "gl",
        title: "OpenGL (GLSL) on llvmpipe, no subgroups",
        packages: &["libegl1", "libgles2", "libgl1-mesa-dri"],
        environment: &[("EGL_PLATFORM", "surfaceless"), ("FLASHWAVE_BACKEND", "gl")],
        program: Program::Flashwave(&[]),
        file: None,
    },
    Column {
        name: "dawn",
        title: "Dawn (Tint) on SwiftShader, subgroups of 4",
        packages: &["chromium"],
        environment: &[("VK_DRIVER_FILES", SWIFTSHADER)],
        program: Program::Dawn(&[]),
        file: Some(SWIFTSHADER),
    },
    Column {
        name: "dawn-portable",
        title: "Dawn (Tint) on SwiftShader, portable tier",
        packages: &["chromium"],
        environment: &[("VK_DRIVER_FILES", SWIFTSHADER)],
        program: Program::Dawn(&["--portable"]),
        file: Some(SWIFTSHADER),
    },
];

/// The browser's column, which the page's test fills.
const CHROMIUM: (&str, &str) = ("chromium", "Chromium (Tint) on SwiftShader, as a page");

/// Options of `cargo xtask matrix`.
#[derive(Args)]
pub struct Matrix {
    /// Only these columns, comma-separated: lavapipe, lavapipe-portable, swiftshader, gl, dawn, dawn-portable, chromium
    #[arg(long, value_delimiter = ',')]
    columns: Vec<String>,
    /// One case a group: a group is a kernel with one of its options, and its cases are shapes and types
    #[arg(long)]
    quick: bool,
    /// Seconds that a family of kernels may take on a column
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Run nothing: add what `flashwave verify` printed on another machine as a column, called by the file's name
    #[arg(long, value_name = "FILE", conflicts_with_all = ["columns", "quick"])]
    add: Option<PathBuf>,
    /// Only write the README's table again, of the records that are there
    #[arg(long, conflicts_with_all = ["columns", "quick", "add"])]
    table: bool,
}

impl Matrix {
    /// Runs the columns, writes their records and the table.
    ///
    /// # Errors
    /// Where a column's name is unknown, programs cannot be built, a case fails, a family takes too long, or what is to be
    /// added is no record.
    pub fn run(&self) -> Result<()> {
        let names = COLUMNS.iter().map(|c| c.name).chain([CHROMIUM.0]);
        let names: Vec<&str> = names.collect();
        if let Some(odd) = self.columns.iter().find(|c| !names.contains(&c.as_str())) {
            bail!("--columns: {odd}; allowed: {}", names.join(", "));
        }
        let wanted = |name: &str| self.columns.is_empty() || self.columns.iter().any(|c| c == name);
        let mut failed = Vec::new();
        if let Some(file) = &self.add {
            add(file)?;
        } else if !self.table {
            let columns = || COLUMNS.iter().filter(|c| wanted(c.name));
            if columns().any(|c| matches!(c.program, Program::Flashwave(_))) {
                finish(cargo("build").args(["--bin", "flashwave"]))?;
            }
            let dawn = columns().any(|c| matches!(c.program, Program::Dawn(_)));
            if dawn || wanted(CHROMIUM.0) {
                web::build(web::Build::Checked)?;
            }
            if dawn {
                web::npm_ci(&root().join("tools/web/dawn"))?;
            }
            for column in columns() {
                match column.missing() {
                    Some(reason) => eprintln!("{} skipped: {reason}", column.name),
                    None => column.run(self)?,
                }
            }
            if wanted(CHROMIUM.0) {
                let record = record(CHROMIUM.0);
                let effort = if self.quick { "--quick" } else { "--all" };
                let options = [effort, "--record", &record.to_string_lossy()];
                if let Err(error) = web::test(&options) {
                    eprintln!("chromium: {error:#}");
                    failed.push(CHROMIUM.0);
                }
            }
        }
        let table = table(&records()?)?;
        print!("{table}");
        write_readme(&root().join("README.md"), &table)?;
        for name in names.iter().filter(|n| wanted(n)) {
            let counts = Counts::read(&record(name)).unwrap_or_default();
            if counts.failed + counts.unfinished.len() > 0 && !failed.contains(name) {
                failed.push(name);
            }
        }
        match failed.is_empty() {
            true => Ok(()),
            false => bail!("failed cases on: {}", failed.join(", ")),
        }
    }
}

impl Column {
    /// Why this system cannot run it, after installing what it takes.
    fn missing(&self) -> Option<String> {
        if !cfg!(target_os = "linux") {
            return Some("a column of Linux".into());
        }
        let there = || self.file.is_none_or(|f| Path::new(f).is_file());
        if !there() {
            if let Err(error) = install::packages(self.packages) {
                return Some(format!("{error:#}"));
            }
            if !there() {
                return Some(format!("{} is missing", self.file.unwrap_or_default()));
            }
        }
        let Program::Flashwave(_) = self.program else {
            return None;
        };
        match self.command(&["devices"]).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Its program with `arguments`.
    fn command(&self, arguments: &[&str]) -> Command {
        let (mut command, options) = match self.program {
            Program::Flashwave(options) => (
                Command::new(target_folder().join("debug/flashwave")),
                options,
            ),
            Program::Dawn(options) => {
                let mut node = Command::new("node");
                node.arg(root().join("tools/web/dawn/verify.mjs"))
                    .arg(web::page());
                (node, options)
            }
        };
        command
            .args(options)
            .args(arguments)
            .envs(self.environment.iter().copied())
            .env("RUST_LOG", "error")
            .stdin(Stdio::null());
        command
    }

    /// What runs a family's cases.
    fn verify(&self, family: &str, matrix: &Matrix) -> Command {
        let mut command = match self.program {
            Program::Flashwave(_) => self.command(&["verify", family]),
            Program::Dawn(_) => self.command(&[family]),
        };
        command.args(matrix.quick.then_some("--quick"));
        command
    }

    fn run(&self, matrix: &Matrix) -> Result<()> {
        let path = record(self.name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut record = String::new();
        for family in kernels() {
            eprintln!("{}: {family}", self.name);
            let part = path.with_extension("part");
            let mut child = self
                .verify(&family, matrix)
                .stdout(File::create(&part)?)
                .stderr(Stdio::null())
                .spawn()
                .context("cannot start flashwave")?;
            let end = Instant::now() + Duration::from_secs(matrix.limit);
            let ended = loop {
                match child.try_wait()? {
                    Some(status) => break Some(status),
                    None if Instant::now() > end => break None,
                    None => std::thread::sleep(Duration::from_millis(50)),
                }
            };
            record += &fs::read_to_string(&part)?;
            if ended.is_none() {
                child.kill()?;
                child.wait()?;
                writeln!(record, "UNFINISHED {family}: after {} s", matrix.limit)?;
            } else if ended.is_some_and(|status| !matches!(status.code(), Some(0 | 1))) {
                writeln!(record, "UNFINISHED {family}: the program crashed")?;
            }
            fs::remove_file(&part)?;
            fs::write(&path, &record)?;
        }
        Ok(())
    }
}

/// Families of kernels, which are the modules of cases.
fn kernels() -> Vec<String> {
    let list = include_str!("../../../kernels-tests/src/cases/mod.rs");
    let names = list.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("name: \"")?;
        name.strip_suffix("\",")
    });
    names.map(String::from).collect()
}

fn record(column: &str) -> PathBuf {
    let name = format!("benches/record/matrix/{column}.txt");
    root().join(name)
}

/// Copies a record of another machine among ours.
fn add(file: &Path) -> Result<()> {
    let shown = file.display();
    let text = fs::read_to_string(file).with_context(|| shown.to_string())?;
    let counts = Counts::parse(&text);
    if counts.adapter.is_empty() || counts.passed == 0 {
        bail!("--add: {shown}; allowed: what `flashwave verify` printed");
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let to = record(&stem);
    fs::create_dir_all(to.parent().unwrap_or(Path::new(".")))?;
    fs::write(to, text)?;
    Ok(())
}

/// The records that are there, each with what the table calls it: our columns first, then those of other machines.
fn records() -> Result<Vec<(String, PathBuf)>> {
    let ours = COLUMNS.iter().map(|c| (c.name, c.title)).chain([CHROMIUM]);
    let ours: Vec<(&str, &str)> = ours.collect();
    let mut others = Vec::new();
    if let Ok(files) = fs::read_dir(record("").parent().unwrap_or(Path::new("."))) {
        for file in files {
            let path = file?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let known = ours.iter().any(|(name, _)| *name == stem);
            if !known && path.extension().is_some_and(|e| e == "txt") {
                others.push((stem.into_owned(), path));
            }
        }
    }
    others.sort();
    let ours = ours
        .into_iter()
        .map(|(name, title)| (title.into(), record(name)));
    Ok(ours.chain(others).collect())
}

/// What a record comes to.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    adapter: String,
    /// Which cases were run.
    cases: String,
    passed: usize,
    failed: usize,
    skipped: BTreeMap<String, usize>,
    unfinished: Vec<String>,
    /// Families with a line of their own.
    families: BTreeSet<String>,
}

impl Counts {
    fn read(path: &Path) -> Option<Self> {
        Some(Self::parse(&fs::read_to_string(path).ok()?))
    }

    /// Adds up what `flashwave verify` printed, run after run.
    fn parse(text: &str) -> Self {
        let mut counts = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |i: usize| words.get(i).and_then(|w| w.parse::<usize>().ok());
            match words[..] {
                ["adapter:", ..] => counts.adapter = line["adapter:".len()..].trim().into(),
                ["cases:", ..] => counts.cases = line["cases:".len()..].trim().into(),
                ["UNFINISHED", family, ..] => {
                    counts.unfinished.push(family.trim_end_matches(':').into());
                }
                // The sum of a run; a group's line begins with a verdict.
                [_, "passed,", _, "failed"] => {}
                [_, "skipped:", ..] => {
                    let what = line.split_once(": ").map_or("", |(_, what)| what);
                    *counts.skipped.entry(what.into()).or_default() += number(0).unwrap_or(0);
                }
                ["ok" | "FAILED" | "skip", family, ..] if !line.starts_with(' ') => {
                    counts.families.insert(family.into());
                    let before = |word| words.iter().position(|w| *w == word);
                    let count = |word| before(word).and_then(|i| number(i.checked_sub(1)?));
                    counts.passed += count("passed").unwrap_or(0);
                    counts.failed += count("failed").unwrap_or(0);
                }
                _ => {}
            }
        }
        counts
    }
}

/// The table of all records.
fn table(records: &[(String, PathBuf)]) -> Result<String> {
    let mut table =
        "| implementation | adapter | cases | passed | failed | skipped, for want of |\n\
                     | --- | --- | --- | --- | --- | --- |\n"
            .to_string();
    for (title, path) in records {
        let Some(counts) = Counts::read(path) else {
            continue;
        };
        let skipped = counts.skipped.iter();
        let mut notes: Vec<String> = skipped.map(|(what, n)| format!("{n}: {what}")).collect();
        if !counts.unfinished.is_empty() {
            notes.push(format!("not finished: {}", counts.unfinished.join(", ")));
        }
        let absent = |family: &String| {
            !counts.families.contains(family) && !counts.unfinished.contains(family)
        };
        let absent: Vec<String> = kernels().into_iter().filter(absent).collect();
        if !absent.is_empty() {
            notes.push(format!("not run: {}", absent.join(", ")));
        }
        let Counts {
            adapter,
            cases,
            passed,
            failed,
            ..
        } = counts;
        let notes = notes.join("; ");
        writeln!(
            table,
            "| {title} | {adapter} | {cases} | {passed} | {failed} | {notes} |"
        )?;
    }
    Ok(table)
}

const BEGIN: &str = "<!-- matrix: written by `cargo xtask matrix` -->\n";
const END: &str = "<!-- matrix: end -->\n";

/// Puts the table between its marks.
fn write_readme(path: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let marked = text.split_once(BEGIN).zip(text.split_once(END));
    let Some(((before, _), (_, after))) = marked else {
        bail!("{}: the marks of the table are missing", path.display());
    };
    fs::write(path, format!("{before}{BEGIN}{table}{END}{after}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_added_up() {
        let counts = Counts::parse(
            "adapter: a card (vulkan, Discrete)\ntiers: portable\ncases: one a group\n\
             ok     gemm plain    12 passed   0 failed  worst 0.50 of the bound  1.00 s\n\
             skip   gemm cooperative    0 passed   0 failed  worst 0.00 of the bound  0.00 s\n\
             FAILED norm rms    3 passed   1 failed  worst 0.50 of the bound  1.00 s\n       \
             ok: error 1 (2 passed, 3 failed)\n\
             2 skipped: cooperative matrices\n15 passed, 1 failed\n\
             1 skipped: cooperative matrices\nUNFINISHED fft: after 60 s\n",
        );
        assert_eq!([counts.passed, counts.failed], [15, 1]);
        assert_eq!(counts.adapter, "a card (vulkan, Discrete)");
        assert_eq!(counts.cases, "one a group");
        assert_eq!(counts.skipped["cooperative matrices"], 3);
        assert_eq!(counts.unfinished, ["fft"]);
        assert!(counts.families.iter().eq(["gemm", "norm"]));
    }

    #[test]
    fn all_families_are_run() {
        assert!(kernels().len() > 15);
        assert!(kernels().contains(&"sparse_attention".into()));
    }
}
