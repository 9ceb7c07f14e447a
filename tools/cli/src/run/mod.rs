//! `flashwave run`: any public kernel on a user's own tensors, by name.
//!
//! Each kernel is an [`Entry`]: what it takes, as data, and a function that calls the library. Reading and writing
//! files, and every check of names and types, is done here once for all of them.

mod attention;
mod attention_backward;
mod cache;
mod call;
mod dense;
mod elementwise;
mod entry;
mod fft;
mod files;
mod gemm8;
mod mlp;
mod norm;
mod rows;
mod sequences;
mod sparse_attention;
mod tokens;

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::device::DeviceArgs;
use call::{Call, parse_sets};
use entry::{Entry, Need, dtype_name};

/// Options of `flashwave run`.
#[derive(Args)]
pub struct RunArgs {
    /// Which kernel; --list names them
    #[arg(required_unless_present = "list")]
    kernel: Option<String>,
    /// Print what KERNEL, or every kernel, takes and gives
    #[arg(long)]
    list: bool,
    /// File with the named inputs
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    input: Option<PathBuf>,
    /// File for the named outputs
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Set a parameter
    #[arg(long = "set", value_name = "NAME=VALUE")]
    sets: Vec<String>,
}

/// The entries of all families.
fn entries() -> impl Iterator<Item = &'static Entry> {
    [
        elementwise::ENTRIES,
        dense::ENTRIES,
        gemm8::ENTRIES,
        norm::ENTRIES,
        rows::ENTRIES,
        tokens::ENTRIES,
        attention::ENTRIES,
        fft::ENTRIES,
        sequences::ENTRIES,
        attention_backward::ENTRIES,
        sparse_attention::ENTRIES,
        cache::ENTRIES,
        mlp::ENTRIES,
    ]
    .into_iter()
    .flatten()
}

/// Runs the kernel, or lists.
pub fn run(device: &DeviceArgs, args: &RunArgs) -> Result<()> {
    let named = args.kernel.as_deref();
    let found = named.map(find).transpose()?;
    let (Some(entry), Some(input), Some(output), false) =
        (found, &args.input, &args.output, args.list)
    else {
        return list(found);
    };
    // Everything that needs no device is checked before there is one.
    let sets = parse_sets(entry, &args.sets)?;
    let inputs = files::read(entry, input)?;
    let ctx = device.open()?;
    let mut call = Call::new(&ctx, entry, inputs, sets);
    (entry.run)(&mut call)?;
    let outputs = call.into_outputs();
    files::write(output, &outputs)?;
    let mut out = stdout().lock();
    for (name, tensor) in &outputs {
        writeln!(out, "{name}: {:?}", tensor.layout())?;
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Entry> {
    if let Some(entry) = entries().find(|e| e.name == name) {
        return Ok(entry);
    }
    let names: Vec<&str> = entries().map(|e| e.name).collect();
    bail!("KERNEL: {name}; allowed: {}", names.join(", "));
}

fn list(only: Option<&'static Entry>) -> Result<()> {
    let mut out = stdout().lock();
    for entry in entries().filter(|e| only.is_none_or(|o| o.name == e.name)) {
        writeln!(out, "{}: {}", entry.name, entry.about)?;
        for input in entry.inputs {
            let dtypes: Vec<String> = input.dtypes.iter().map(|&d| dtype_name(d)).collect();
            let optional = match input.need {
                Need::Required => "",
                Need::Optional => " (optional)",
            };
            writeln!(
                out,
                "    input  {:<12} {:<16} {}{optional}",
                input.name,
                dtypes.join(" "),
                input.shape
            )?;
        }
        for param in entry.params {
            let assigned = format!("{}={}", param.name, param.kind.allowed());
            writeln!(
                out,
                "    set    {assigned:<29} {} (default: {})",
                param.about,
                param.default.text()
            )?;
        }
        for output in entry.outputs {
            writeln!(out, "    output {:<29} {}", output.name, output.shape)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_names_of_their_own_and_defaults_that_parse() {
        let mut names: Vec<&str> = entries().map(|e| e.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        for entry in entries() {
            assert!(
                !entry.inputs.is_empty() && !entry.outputs.is_empty(),
                "{}",
                entry.name
            );
            for param in entry.params {
                if let entry::Default::Value(text) = param.default {
                    param.parse(text).expect(entry.name);
                }
            }
        }
    }
}
