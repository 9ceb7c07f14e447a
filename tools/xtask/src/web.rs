//! The page: built, served, and tested in a headless Chromium.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::install;
use crate::serve::serve;
use crate::tasks::{cargo, finish, root};

const TARGET: &str = "wasm32-unknown-unknown";
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
    /// Test it in a headless Chromium, which is installed if need be
    #[arg(long, conflicts_with = "serve")]
    test: bool,
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
            ensure_target()?;
            return finish(cargo("check").args(["-p", "flashwave-web", "--target", TARGET]));
        }
        let page = build()?;
        if self.serve {
            let (address, server) = serve(&page, self.port)?;
            println!("http://{address}");
            server.join().ok();
        } else if self.test {
            test(&page, &["--screenshots"])?;
        }
        Ok(())
    }
}

/// Builds the page; the folder that holds it.
pub fn build() -> Result<PathBuf> {
    ensure_target()?;
    let package = ["--package", "flashwave-web"];
    let module = ["--lib", "--target", TARGET, "--profile", "web"];
    finish(cargo("build").args(package).args(module))?;
    let (target, page) = (target_folder(), target_folder().join("web-page"));
    if page.is_dir() {
        fs::remove_dir_all(&page)?;
    }
    let module = target.join(TARGET).join("web/flashwave_web.wasm");
    let bindgen = ["--features", "bindgen", "--bin", "bindgen", "--"];
    let mut run = cargo("run");
    run.args(package).args(bindgen).arg(module).arg(&page);
    finish(&mut run)?;
    copy(&root().join("tools/web/page"), &page)?;
    copy(&root().join("assets/default-model"), &page.join("model"))?;

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
    eprintln!("page: {}", page.display());
    Ok(page)
}

/// Runs the test of `tools/web/test` on the page.
pub fn test(page: &Path, options: &[&str]) -> Result<()> {
    if ensure_chromium().is_none() {
        install::packages(&["chromium"])?;
    }
    let browser = ensure_chromium().context("chromium is not among the programs")?;
    let tests = root().join("tools/web/test");
    let npm = ["ci", "--no-audit", "--no-fund"];
    finish(Command::new("npm").args(npm).current_dir(&tests))?;
    let (address, _server) = serve(page, 0)?;
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

/// Cargo's target folder.
fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Rust's library for browsers.
fn ensure_target() -> Result<()> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.context("cannot start rustc")?.stdout;
    let sysroot = String::from_utf8_lossy(&sysroot);
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
    match library.is_dir() {
        true => Ok(()),
        false => finish(Command::new("rustup").args(["target", "add", TARGET])),
    }
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
