//! Elementwise kernels over tensors far larger than any cache.

use flashwave::DType::{F16, F32};
use flashwave::kernels::elementwise::{Activation, Binary, BinaryOp, Tuning, Unary};
use flashwave::{Capabilities, DType, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

const UNARY: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
const BINARY: [(BinaryOp, &str); 2] = [
    (BinaryOp::Add, "add"),
    (BinaryOp::Gated(Activation::Silu), "swiglu"),
];

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    with_tunings(caps, scale, &[Tuning::default()])
}

/// Every tuning.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    with_tunings(caps, scale, &Tuning::candidates(caps))
}

fn with_tunings(caps: &Capabilities, scale: Scale, tunings: &[Tuning]) -> Vec<Row> {
    let mut rows = Vec::new();
    for dtype in [F32, F16] {
        for &tuning in tunings {
            rows.extend(UNARY.map(|f| unary(caps, scale, f, dtype, dtype, tuning)));
            rows.push(unary(
                caps,
                scale,
                Activation::None,
                dtype,
                other(dtype),
                tuning,
            ));
            rows.extend(BINARY.map(|(op, name)| binary(caps, scale, op, name, dtype, tuning)));
        }
    }
    rows
}

fn other(dtype: DType) -> DType {
    if dtype == F32 { F16 } else { F32 }
}

/// Elements: half a gigabyte of f32 on a card, or what one binding holds.
fn length(caps: &Capabilities, scale: Scale) -> usize {
    let most = 1 << (caps.binding_bytes / 4).ilog2();
    scale.pick(1 << 27, 1 << 20).min(most)
}

fn unary(
    caps: &Capabilities,
    scale: Scale,
    f: Activation,
    x: DType,
    y: DType,
    tuning: Tuning,
) -> Row {
    let n = length(caps, scale);
    let work = match f {
        Activation::None => format!("cast {x} to {y} {n}"),
        f => format!("{} {x} {n}", f.name()),
    };
    let bytes = (n * (x.size() + y.size())) as f64;
    let count = sets(caps, bytes);
    Row::memory("elementwise", work, bytes, move |ctx| {
        let sets: Vec<[Tensor; 2]> = (0..count)
            .map(|i| Ok([random(ctx, x, [n], i)?, Tensor::empty(ctx, y, [n])?]))
            .collect::<Result<_>>()?;
        let [x, y] = &sets[0];
        let launch = Unary(f).plan_with(ctx.capabilities(), tuning, x.layout(), y.layout())?;
        Ok(Prepared::new(launch.recipe.clone(), move |pass, run| {
            let [x, y] = &sets[run % sets.len()];
            pass.launch(&launch, &[x, y])
        }))
    })
}

fn binary(
    caps: &Capabilities,
    scale: Scale,
    op: BinaryOp,
    name: &str,
    dtype: DType,
    tuning: Tuning,
) -> Row {
    let n = length(caps, scale);
    let bytes = (3 * n * dtype.size()) as f64;
    let count = sets(caps, bytes);
    let work = format!("{name} {dtype} {n}");
    Row::memory("elementwise", work, bytes, move |ctx| {
        let tensor = |seed| random(ctx, dtype, [n], seed);
        let sets: Vec<[Tensor; 3]> = (0..count)
            .map(|i| {
                let y = Tensor::empty(ctx, dtype, [n])?;
                Ok([tensor(2 * i)?, tensor(2 * i + 1)?, y])
            })
            .collect::<Result<_>>()?;
        let layout = sets[0][0].layout();
        let launch = Binary(op).plan_with(ctx.capabilities(), tuning, layout, layout, layout)?;
        Ok(Prepared::new(launch.recipe.clone(), move |pass, run| {
            let [a, b, y] = &sets[run % sets.len()];
            pass.launch(&launch, &[a, b, y])
        }))
    })
}
