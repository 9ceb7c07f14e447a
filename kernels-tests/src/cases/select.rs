//! Arg-max and top-k: ggml's widths, with and without ties, NaN, infinities and signed zeros; results are exact.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::select::{ArgMax, TopK};
use flashwave::reference::select::{argmax, top_k};
use flashwave::{Capabilities, DType, Launch, Layout, Tensor};

use crate::Case;
use crate::inputs::{Random, poisoned};
use crate::tolerance::check_equal;

#[derive(Clone, Copy, Debug)]
enum Values {
    Distinct,
    /// Few different values, so that the order of equal ones shows.
    Ties,
    /// NaN, infinities and zeros of both signs among them.
    Special,
    /// Zeros of both signs, which are equal, and less.
    Zeros,
    /// Nothing but negative infinity.
    Masked,
}

fn draw(values: Values, random: &mut Random, n: usize, dtype: DType) -> Vec<f32> {
    let special = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        0.0,
        1.0,
    ];
    match values {
        Values::Distinct => random.normals(n, dtype),
        Values::Ties => (0..n).map(|_| random.below(7) as f32 - 3.0).collect(),
        // NaN only in every other draw: without, the infinity has to win.
        Values::Special => {
            let first = 2 * random.below(2);
            (0..n)
                .map(|_| special[first + random.below(7 - first)])
                .collect()
        }
        Values::Zeros => (0..n).map(|_| special[3 + random.below(3)]).collect(),
        Values::Masked => vec![f32::NEG_INFINITY; n],
    }
}

const VALUES: [Values; 5] = [
    Values::Distinct,
    Values::Ties,
    Values::Special,
    Values::Zeros,
    Values::Masked,
];

/// NaN is unlike itself, and so are the zeros' bits: all NaNs as one, all zeros as one.
fn comparable(values: &[f32]) -> Vec<u32> {
    let bits = |&v: &f32| {
        if v.is_nan() {
            u32::MAX
        } else {
            (v + 0.0).to_bits()
        }
    };
    values.iter().map(bits).collect()
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [F32, F16, BF16] {
        for (rows, cols, chunk) in [
            (1, 1, 8192),
            (3, 5, 8192),
            (2, 1027, 8192),
            (1, 32_000, 8192),
            (2, 10_001, 2048),
            (130, 300, 64),
            (1, 5003, 8),
        ] {
            for values in VALUES {
                let name = format!("{values:?} {dtype} {rows}x{cols} by {chunk}");
                cases.push(Case::new("select", "argmax", name.clone(), move |ctx| {
                    let host = draw(
                        values,
                        &mut Random::new(Case::seed(&name)),
                        rows * cols,
                        dtype,
                    );
                    let x = Tensor::from_f32(ctx, dtype, &host, [rows, cols])?;
                    let index = Tensor::from_slice(ctx, &vec![u32::MAX; rows], [rows])?;
                    let value = poisoned(ctx, F32, [rows])?;
                    let best: Vec<usize> = host.chunks(cols).map(argmax).collect();
                    let picked: Vec<f32> = best
                        .iter()
                        .enumerate()
                        .map(|(r, &i)| host[r * cols + i])
                        .collect();
                    let best: Vec<u32> = best.into_iter().map(|i| i as u32).collect();
                    let op = ArgMax { chunk };
                    ctx.record(|pass| op.run(pass, &x, &index, Some(&value)))?;
                    let outcome = check_equal(&index.to_vec::<u32>()?, &best)?.and(check_equal(
                        &comparable(&value.to_f32_vec()?),
                        &comparable(&picked),
                    )?);
                    let alone = op.forward(&x)?;
                    Ok(outcome.and(check_equal(&alone.to_vec::<u32>()?, &best)?))
                }));
            }
        }
    }
    for (widths, ks, block) in TOP_K {
        for &cols in widths {
            for &k in ks.iter().filter(|&&k| k <= cols) {
                for values in [Values::Distinct, Values::Ties] {
                    let rows = if cols < 3000 { 3 } else { 1 };
                    let name = format!("{values:?} {k} of {rows}x{cols} by {block}");
                    top_k_case(&mut cases, name, values, F32, [rows, cols], k, block);
                }
            }
        }
    }
    for dtype in [F32, F16, BF16] {
        for values in [Values::Special, Values::Zeros, Values::Masked] {
            let name = format!("{values:?} 70 of {dtype} 5x600");
            top_k_case(&mut cases, name, values, dtype, [5, 600], 70, 256);
        }
    }
    cases
}

/// ggml's widths and numbers, thinned, and blocks: small ones reach many merges at small sizes.
const TOP_K: [(&[usize], &[usize], usize); 4] = [
    (
        &[1, 2, 12, 64, 75, 1023, 1024, 1025, 2047, 2048, 2049],
        &[1, 2, 3, 7, 15, 500, 1023],
        2048,
    ),
    (&[16384, 16395, 65547], &[1, 100, 1023, 9999], 2048),
    (&[1025, 2059], &[1, 15, 16, 17, 63, 64, 65, 1000], 64),
    (&[4107], &[1, 100, 4107], 512),
];

fn top_k_case(
    cases: &mut Vec<Case>,
    name: String,
    values: Values,
    dtype: DType,
    [rows, cols]: [usize; 2],
    k: usize,
    block: usize,
) {
    cases.push(Case::new("select", "top-k", name.clone(), move |ctx| {
        let host = draw(
            values,
            &mut Random::new(Case::seed(&name)),
            rows * cols,
            dtype,
        );
        let x = Tensor::from_f32(ctx, dtype, &host, [rows, cols])?;
        let values_out = poisoned(ctx, F32, [rows, k])?;
        let indices_out = Tensor::from_slice(ctx, &vec![u32::MAX; rows * k], [rows, k])?;
        ctx.record(|pass| TopK { block }.run(pass, &x, &values_out, &indices_out))?;
        let best: Vec<usize> = host.chunks(cols).flat_map(|row| top_k(row, k)).collect();
        let picked: Vec<f32> = best
            .iter()
            .enumerate()
            .map(|(i, &c)| host[i / k * cols + c])
            .collect();
        let best: Vec<u32> = best.into_iter().map(|i| i as u32).collect();
        Ok(
            check_equal(&indices_out.to_vec::<u32>()?, &best)?.and(check_equal(
                &comparable(&values_out.to_f32_vec()?),
                &comparable(&picked),
            )?),
        )
    }));
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for dtype in [F32, F16, BF16] {
        for cols in [1, 1024, 128_256, 50_257] {
            let found = (|| {
                let x = Layout::contiguous(dtype, [3, cols])?;
                let index = Layout::contiguous(DType::U32, [3])?;
                let value = Layout::contiguous(F32, [3])?;
                let mut found = Vec::new();
                for value in [None, Some(&value)] {
                    let plan = ArgMax::default().plan(caps, &x, &index, value)?;
                    found.push(plan.scan);
                    found.extend(plan.merge);
                }
                for k in [1, 50, 1000] {
                    let values = Layout::contiguous(F32, [3, k])?;
                    let indices = Layout::contiguous(DType::U32, [3, k])?;
                    for block in TopK::CANDIDATES {
                        if k <= cols {
                            found.extend(TopK { block }.plan(caps, &x, &values, &indices)?.steps);
                        }
                    }
                }
                Ok::<_, flashwave::Error>(found)
            })();
            launches.extend(found.expect("plans"));
        }
    }
    launches
}
