//! `flashwave devices`.

use std::io::{Write, stdout};

use anyhow::Result;
use flashwave::capabilities::{CooperativeShape, MatrixTier, ParamsTier, ReduceTier};
use flashwave::{Capabilities, Context};

use crate::device::DeviceArgs;
use crate::units::bytes;

/// Prints every adapter; `*` stands before the one that the options choose.
pub fn run(device: &DeviceArgs) -> Result<()> {
    let all = pollster::block_on(Context::adapters());
    let chosen = pollster::block_on(device.builder().chosen());
    let mut out = stdout().lock();
    let mut marked = false;
    for caps in &all {
        let here = !marked && chosen.as_ref().is_ok_and(|c| c == caps);
        marked |= here;
        print(&mut out, caps, if here { "*" } else { " " })?;
    }
    // The list has been printed: it says why nothing fits.
    chosen?;
    writeln!(out, "\n* is used unless told otherwise")?;
    Ok(())
}

fn print(out: &mut impl Write, caps: &Capabilities, mark: &str) -> Result<()> {
    writeln!(
        out,
        "{mark} {} ({}, {:?})",
        caps.name, caps.backend, caps.class
    )?;
    let lines = [
        ("driver", caps.driver.clone()),
        ("tiers", caps.tier_summary()),
        (
            "reductions",
            match (caps.reduce_tier(), caps.subgroups) {
                (ReduceTier::Subgroup, Some(s)) => {
                    format!("subgroups of {} to {} invocations", s.min, s.max)
                }
                _ => "workgroup memory (no subgroups)".into(),
            },
        ),
        (
            "parameters",
            match caps.params_tier() {
                ParamsTier::Immediate => {
                    format!("immediates (up to {} bytes)", caps.immediate_bytes)
                }
                ParamsTier::Uniform => "uniform buffers".into(),
            },
        ),
        ("f16 in shaders", yes(caps.shader_f16)),
        ("cooperative", cooperative(&caps.cooperative)),
        (
            "f16 products",
            match caps.matrix_tier() {
                MatrixTier::Cooperative => "cooperative matrices, 16 bytes a load".into(),
                MatrixTier::Fma => "f32 multiply-adds".into(),
            },
        ),
        (
            "timestamps",
            match (caps.timestamps, caps.timestamps_in_pass) {
                (true, true) => "around and inside passes".into(),
                (true, false) => "around passes".into(),
                _ => "no".into(),
            },
        ),
        ("pipeline cache", yes(caps.pipeline_cache)),
        (
            "memory limits",
            format!(
                "{} a binding, {} a buffer, {} bindings",
                bytes(caps.binding_bytes),
                bytes(caps.buffer_bytes),
                caps.storage_buffers
            ),
        ),
        (
            "workgroups",
            format!(
                "{} invocations, {} of memory, {} in a dimension",
                caps.invocations,
                bytes(caps.workgroup_bytes.into()),
                caps.workgroups
            ),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "    {name:<15} {value}")?;
    }
    Ok(())
}

fn yes(has: bool) -> String {
    if has { "yes" } else { "no" }.into()
}

fn cooperative(shapes: &[CooperativeShape]) -> String {
    if shapes.is_empty() {
        return "no".into();
    }
    let float = |wide| if wide { "f32" } else { "f16" };
    let each = shapes.iter().map(|s| {
        format!(
            "{}x{}x{} {} -> {}",
            s.m,
            s.n,
            s.k,
            float(!s.f16_inputs),
            float(s.f32_accumulator)
        )
    });
    each.collect::<Vec<_>>().join(", ")
}
