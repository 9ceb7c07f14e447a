//! Which device, and how to use it: options of every subcommand.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use flashwave::Context;
use flashwave::context::{ContextBuilder, ShaderChecks, SoftwareAdapters, Tuning};

/// Options that choose and open the device. What they leave open, the environment decides: FLASHWAVE_BACKEND,
/// FLASHWAVE_ADAPTER, FLASHWAVE_SOFTWARE, FLASHWAVE_CHECKS, FLASHWAVE_CACHE, FLASHWAVE_TUNING.
#[derive(Args)]
pub struct DeviceArgs {
    /// Only adapters of this backend
    #[arg(long, global = true, help_heading = "Device")]
    backend: Option<Backend>,
    /// Only adapters whose name contains PART, ignoring case
    #[arg(long, global = true, value_name = "PART", help_heading = "Device")]
    adapter: Option<String>,
    /// Whether a software adapter may be used
    #[arg(long, global = true, help_heading = "Device")]
    software: Option<Software>,
    /// Whether shaders check bounds; verify also takes both
    #[arg(long, global = true, help_heading = "Device")]
    checks: Option<Checks>,
    /// Use no optional tier: uniform parameters and no subgroups, as in a browser
    #[arg(long, global = true, help_heading = "Device")]
    portable: bool,
    /// Keep compiled pipelines and tunings in this folder, so that the next start is faster; else in that of FLASHWAVE_CACHE
    /// (empty: nowhere), else in "flashwave" of the user's cache folder
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Device")]
    cache: Option<PathBuf>,
    /// Whether kernels take what `flashwave tune` found: off, stored (the default), or seconds that a model may spend on tuning
    /// what it first runs
    #[arg(long, global = true, value_name = "HOW", help_heading = "Device")]
    tuning: Option<Tuning>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Vulkan,
    Metal,
    Dx12,
    Gl,
}

#[derive(Clone, Copy, ValueEnum)]
enum Software {
    /// If there is no hardware
    Allowed,
    /// Never
    Refused,
    /// Nothing else
    Only,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Checks {
    On,
    Off,
    /// First off, then on
    Both,
}

impl DeviceArgs {
    /// The context that the options ask for.
    pub fn open(&self) -> Result<Context> {
        if self.checks == Some(Checks::Both) {
            bail!("--checks: both; allowed: on or off (both is for verify)");
        }
        Ok(self.builder().build()?)
    }

    /// A context for every setting of the checks that the options ask for.
    pub fn open_each(&self) -> Result<Vec<Context>> {
        if self.checks != Some(Checks::Both) {
            return Ok(vec![self.open()?]);
        }
        let each = [ShaderChecks::Off, ShaderChecks::On];
        each.into_iter()
            .map(|checks| Ok(self.builder().checks(checks).build()?))
            .collect()
    }

    /// The options as a builder; checks stay open if they are both.
    pub fn builder(&self) -> ContextBuilder {
        let mut builder = Context::builder();
        if let Some(backend) = self.backend {
            builder = builder.backends(match backend {
                Backend::Vulkan => wgpu::Backends::VULKAN,
                Backend::Metal => wgpu::Backends::METAL,
                Backend::Dx12 => wgpu::Backends::DX12,
                Backend::Gl => wgpu::Backends::GL,
            });
        }
        if let Some(part) = &self.adapter {
            builder = builder.adapter_name(part);
        }
        if let Some(software) = self.software {
            builder = builder.software(match software {
                Software::Allowed => SoftwareAdapters::Allowed,
                Software::Refused => SoftwareAdapters::Refused,
                Software::Only => SoftwareAdapters::Only,
            });
        }
        match self.checks {
            Some(Checks::On) => builder = builder.checks(ShaderChecks::On),
            Some(Checks::Off) => builder = builder.checks(ShaderChecks::Off),
            Some(Checks::Both) | None => {}
        }
        if self.portable {
            builder = builder.portable();
        }
        if let Some(tuning) = self.tuning {
            builder = builder.tuning(tuning);
        }
        if let Some(folder) = self.cache_folder() {
            builder = builder.pipeline_cache(folder);
        }
        builder
    }

    /// Where compiled pipelines are kept, unless FLASHWAVE_CACHE is to say so.
    fn cache_folder(&self) -> Option<PathBuf> {
        if self.cache.is_some() || std::env::var_os("FLASHWAVE_CACHE").is_some() {
            return self.cache.clone();
        }
        // A user without a home folder has none: the pipelines are then compiled at every start.
        Some(dirs::cache_dir()?.join("flashwave"))
    }
}

/// `off` or `on`, as the option has it.
pub fn checks_name(ctx: &Context) -> &'static str {
    match ctx.checks() {
        ShaderChecks::Off => "off",
        ShaderChecks::On => "on",
    }
}

/// The lines that say what a report was made on.
pub fn heading(ctx: &Context) -> String {
    let caps = ctx.capabilities();
    format!(
        "adapter: {} ({}, {:?})\ndriver: {}\ntiers: {}; checks {}",
        caps.name,
        caps.backend,
        caps.class,
        caps.driver,
        caps.tier_summary(),
        checks_name(ctx)
    )
}
