//! `flashwave sparsity`.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use flashwave::kernels::sparse::{Causality, Pattern, SparseLayout};

use crate::picture;

/// Options of `flashwave sparsity`.
#[derive(Args)]
pub struct SparsityArgs {
    /// The pattern, sizes in blocks: s2:stride=16,window=4,sinks=1 (stride=8/16/32 for heads in turn), longgen, bigbird,
    /// dilated, banded, dense
    #[arg(long, value_name = "PATTERN")]
    layout: String,
    /// Heads with lists of their own
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Queries
    #[arg(long, default_value_t = 4096)]
    length: usize,
    /// Keys, if unlike the queries; both end together
    #[arg(long)]
    keys: Option<usize>,
    /// Side of a block: 16, 32, 64 or 128
    #[arg(long, default_value_t = 64)]
    block: usize,
    /// Which keys a query may see at all
    #[arg(long, value_enum, default_value_t = MaskArg::Causal)]
    mask: MaskArg,
    /// Key heads of a cache, to say what it keeps; as many as heads if not given
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Draw the layout into this file
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MaskArg {
    Full,
    Causal,
}

/// Prints the layout and draws it.
pub fn run(args: &SparsityArgs) -> Result<()> {
    let pattern: Pattern = args.layout.parse()?;
    let causality = match args.mask {
        MaskArg::Full => Causality::Full,
        MaskArg::Causal => Causality::Causal,
    };
    let keys = args.keys.unwrap_or(args.length);
    let layout = SparseLayout::builder(args.heads, args.length, keys)
        .block(args.block)
        .causality(causality)
        .pattern(&pattern)?;
    let mut out = stdout().lock();
    writeln!(out, "{pattern}")?;
    write!(out, "{layout}")?;
    let density = layout.density();
    writeln!(
        out,
        "density {density:.4} (1/{:.1}) of what is visible, {} blocks listed, {} bytes on the device",
        1.0 / density,
        layout.blocks(),
        layout.bytes()
    )?;
    match layout.uncovered() {
        None => writeln!(out, "the heads cover the context together")?,
        Some((queries, keys)) => writeln!(
            out,
            "no head has block {keys} of the keys for block {queries} of the queries"
        )?,
    }
    match layout.residency(args.kv_heads.unwrap_or(args.heads), 1) {
        Ok(residency) => writeln!(
            out,
            "a cache keeps {:.1}% of the keys and values",
            residency.share() * 100.0
        )?,
        // What was asked for has to be answered; what was not is left out.
        Err(error) if args.kv_heads.is_some() => bail!(error),
        Err(_) => {}
    }
    if let Some(path) = &args.png {
        picture::layout(&layout, path)?;
        writeln!(out, "drawn: {}", path.display())?;
    }
    Ok(())
}
