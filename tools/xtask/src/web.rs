//! The page: built, served, and tested in a headless Chromium.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::install;
use crate::serve::serve;
use crate::targets;
use crate::tasks::{cargo, finish, root, target_folder};

const TARGET: &str = "wasm32-unknown-unknown";
/// The profile of what is compiled soon.
const QUICK: &str = "web-quick";
/// What the module may have at most, compressed.
const MOST: usize = 3 << 20;

/// Options of `cargo xtask web`.
#[derive(Args)]
pub struct Web {
    /// Serve it until interrupted
    #[arg(long)]
    serve: bool,
    /// Where to listen with --serve
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Test it in a headless Chromium, which is installed if need be: text, some families of kernels, the chart, errors; the
    /// module is compiled as tests are, within a minute or two
    #[arg(long, conflicts_with = "serve")]
    test: bool,
    /// With --test: the module as it ships, and after that all families of kernels, one case a group
    #[arg(long, requires = "test")]
    full: bool,
    /// Only check that everything compiles for a browser
    #[arg(long, conflicts_with_all = ["serve", "test"])]
    check: bool,
}

impl Web {
    /// Runs the task.
    ///
    /// # Errors
    /// Where a program that it needs cannot be had, or fails.
    pub fn run(&self) -> Result<()> {
        if self.check {
            targets::ensure(TARGET)?;
            return finish(cargo("check").args(["-p", "flashwave-web", "--target", TARGET]));
        }
        let quick = self.test && !self.full;
        build(if quick {
            Build::Checked
        } else {
            Build::Shipped
        })?;
        if self.serve {
            let (address, server) = serve(&page(), self.port)?;
            println!("http://{address}");
            server.join().ok();
        }
        if self.test {
            test(&["--screenshots"])?;
        }
        if self.full {
            test(&["--quick", "--screenshots"])?;
        }
        Ok(())
    }
}

/// How the module is compiled.
#[derive(Clone, Copy)]
pub enum Build {
    /// As it ships: small, which takes minutes.
    Shipped,
    /// Soon there, and with the checks of debug builds.
    Checked,
}

/// The folder that holds the page once it is built.
pub fn page() -> PathBuf {
    target_folder().join("web-page")
}

/// Builds the page.
pub fn build(how: Build) -> Result<()> {
    targets::ensure(TARGET)?;
    let profile = match how {
        Build::Shipped => "web",
        Build::Checked => QUICK,
    };
    let package = ["--package", "flashwave-web"];
    let module = ["--lib", "--target", TARGET, "--profile", profile];
    finish(cargo("build").args(package).args(module))?;
    let (target, page) = (target_folder(), page());
    if page.is_dir() {
        fs::remove_dir_all(&page)?;
    }
    let module = target.join(TARGET).join(profile).join("flashwave_web.wasm");
    let bindgen = ["--features", "bindgen", "--bin", "bindgen"];
    let mut run = cargo("run");
    run.args(package).args(bindgen).args(["--profile", QUICK]);
    run.arg("--").arg(module).arg(&page);
    finish(&mut run)?;
    copy(&root().join("tools/web/page"), &page)?;
    copy(&root().join("assets/default-model"), &page.join("model"))?;
    eprintln!("page: {}", page.display());
    match how {
        Build::Shipped => measure(&page),
        Build::Checked => Ok(()),
    }
}

/// Says what the module takes to load; more than it may is an error.
fn measure(page: &Path) -> Result<()> {
    let module = page.join("flashwave_web_bg.wasm");
    let size = fs::metadata(&module)?.len();
    let zipped = Command::new("gzip").arg("-9c").arg(&module).output();
    match zipped.map(|z| z.stdout.len()) {
        Ok(zipped) if zipped > MOST => {
            bail!("the module has {zipped} bytes compressed; allowed: {MOST}")
        }
        Ok(zipped) => eprintln!("module: {size} bytes, {zipped} compressed"),
        Err(_) => eprintln!("module: {size} bytes; there is no gzip to compress it"),
    }
    Ok(())
}

/// Runs the test of `tools/web/test` on the page.
pub fn test(options: &[&str]) -> Result<()> {
    if ensure_chromium().is_none() {
        install::packages(&["chromium"])?;
    }
    let browser = ensure_chromium().context("chromium is not among the programs")?;
    let tests = root().join("tools/web/test");
    npm_ci(&tests)?;
    let (address, _server) = serve(&page(), 0)?;
    finish(
        Command::new("node")
            .arg(tests.join("test.mjs"))
            .args(options)
            .env("PAGE", format!("http://{address}/"))
            .env("CHROMIUM", browser)
            .env("OUT", target_folder().join("web-test")),
    )
}

fn ensure_chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join("chromium"));
    places.find(|program| program.is_file())
}

/// Installs what a folder's lock file names.
pub fn npm_ci(folder: &Path) -> Result<()> {
    let npm = ["ci", "--no-audit", "--no-fund"];
    finish(Command::new("npm").args(npm).current_dir(folder))
}

/// Copies a folder's files.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
