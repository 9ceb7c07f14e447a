//! Random tensors against the same hash on the host.

use flashwave::DType::{BF16, F16, F32, U32};
use flashwave::kernels::random::Uniform;
use flashwave::reference::random::{bits, uniform};
use flashwave::{Capabilities, Launch, Layout, Tensor};

use crate::Case;
use crate::inputs::{poisoned, round};
use crate::tolerance::{Ulps, check, check_equal};

/// Around the vector width, and over one workgroup.
const LENGTHS: [usize; 4] = [1, 7, 1024, 5003];

fn fill(name: &str) -> Uniform {
    Uniform {
        seed: Case::seed(name) as u32,
        scale: 1.5,
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in LENGTHS {
        let name = format!("u32 [{n}]");
        cases.push(Case::new("random", "bits", name.clone(), move |ctx| {
            let y = Tensor::from_slice(ctx, &vec![u32::MAX; n], [n])?;
            ctx.record(|pass| fill(&name).run(pass, &y))?;
            let expected: Vec<u32> = (0..n as u32).map(|i| bits(fill(&name).seed, i)).collect();
            check_equal(&y.to_vec::<u32>()?, &expected)
        }));
    }
    for n in LENGTHS {
        for dtype in [F32, F16, BF16] {
            let name = format!("{dtype} [{n}]");
            cases.push(Case::new("random", "uniform", name.clone(), move |ctx| {
                let y = poisoned(ctx, dtype, [n])?;
                let Uniform { seed, scale } = fill(&name);
                ctx.record(|pass| fill(&name).run(pass, &y))?;
                let each = 0..n as u32;
                let exact: Vec<f64> = each.clone().map(|i| uniform(seed, scale, i)).collect();
                let naive: Vec<f32> = each
                    .map(|i| round(uniform(seed, scale, i), dtype))
                    .collect();
                check(&y.to_f32_vec()?, &exact, &naive, Ulps(0.0))
            }));
        }
    }
    cases
}

/// Every variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let each = [U32, F32, F16, BF16].map(|dtype| {
        LENGTHS.map(|n| {
            let y = Layout::contiguous(dtype, [n])?;
            fill("launches").plan(caps, &y)
        })
    });
    each.into_iter().flatten().filter_map(Result::ok).collect()
}
