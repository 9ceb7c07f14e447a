//! Systems that this one cannot run programs of: the library is checked for them all the same.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::tasks::{cargo, finish};

/// Metal on macOS and iOS, Vulkan and OpenGL on Android, DX12 and Vulkan on Windows.
const TARGETS: [&str; 4] = [
    "aarch64-apple-darwin",
    "aarch64-apple-ios",
    "aarch64-linux-android",
    "x86_64-pc-windows-gnu",
];

/// Checks that the library compiles for other systems, with the backends of each.
///
/// # Errors
/// Where Rust's library for a target cannot be had, or the check fails.
pub fn check() -> Result<()> {
    for target in TARGETS {
        ensure(target)?;
        finish(cargo("check").args(["--package", "flashwave", "--lib", "--target", target]))?;
    }
    Ok(())
}

/// Installs Rust's library for a target if it is missing.
///
/// # Errors
/// Where rustup has to be asked and fails.
pub fn ensure(target: &str) -> Result<()> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.context("cannot start rustc")?.stdout;
    let sysroot = String::from_utf8_lossy(&sysroot);
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(target);
    match library.is_dir() {
        true => Ok(()),
        false => finish(Command::new("rustup").args(["target", "add", target])),
    }
}
