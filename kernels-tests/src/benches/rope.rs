//! Rotary embedding of a prompt's queries.

use flashwave::kernels::rope::{
    Positions, RopeConfig, RopeLayout, RopeOut, RopeScaling, RopeTable,
};
use flashwave::{Capabilities, DType, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let layouts = [RopeLayout::HalfSplit, RopeLayout::Interleaved];
    layouts.map(|l| row(caps, scale, l)).into()
}

fn row(caps: &Capabilities, scale: Scale, layout: RopeLayout) -> Row {
    let (tokens, heads, head_dim) = (scale.pick(32768, 64), 32, 128);
    let name = match layout {
        RopeLayout::HalfSplit => "half",
        RopeLayout::Interleaved => "interleaved",
    };
    let work = format!("rope f16 {tokens}x{heads}x{head_dim} {name}");
    // Read and written in place; the table is small.
    let bytes = (2 * tokens * heads * head_dim * 2) as f64;
    let count = sets(caps, bytes);
    Row::memory("rope", work, bytes, move |ctx| {
        let config = RopeConfig {
            theta: 10000.0,
            dims: head_dim,
            layout,
            scaling: RopeScaling::None,
        };
        let table = RopeTable::new(ctx, &config, head_dim, tokens)?;
        let sets: Vec<Tensor> = (0..count)
            .map(|i| random(ctx, DType::F16, [tokens, heads, head_dim], i))
            .collect::<Result<_>>()?;
        let (start, out) = (Positions::From(0), RopeOut::InPlace);
        let caps = ctx.capabilities();
        let launch = table.rope().plan(caps, sets[0].layout(), start, out)?;
        Ok(Prepared::new(launch.recipe, move |pass, run| {
            let x = &sets[run % sets.len()];
            table.run(pass, x, Positions::From(0), RopeOut::InPlace)
        }))
    })
}
