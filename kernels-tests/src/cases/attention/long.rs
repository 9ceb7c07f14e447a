//! Sequences whose matrix of scores would not fit, and the memory that they take.

use flashwave::DType::{F16, F32};
use flashwave::kernels::attention::{Attention, AttentionArgs, Mask};
use flashwave::reference::attention::{Modifiers, Problem, attention};
use flashwave::{Context, Tensor};

use super::{lse_slack, naive, out_slack};
use crate::inputs::{Random, poisoned, widen};
use crate::tolerance::{Outcome, check, check_in};
use crate::{Case, Failure};

/// Channels of the one head.
const DIM: usize = 64;

pub(super) fn cases() -> Vec<Case> {
    let window = |left| Mask::Window {
        left,
        right: 0,
        sinks: 4,
    };
    let mut cases = Vec::new();
    for (length, masks) in [
        (1000, [Mask::Causal, window(100)]),
        (131_072, [Mask::Causal, window(1024)]),
    ] {
        for mask in masks {
            let name = format!("{mask} {length} tokens d{DIM}");
            let case = Case::new("attention", "long", name.clone(), move |ctx| {
                run(ctx, &name, mask, length)
            });
            cases.push(case.on_gpus(length > 2000));
        }
    }
    cases
}

/// Checks a few rows of a self-attention of `length` tokens, and that it needed no memory beside its tensors.
fn run(ctx: &Context, name: &str, mask: Mask, length: usize) -> Result<Outcome, Failure> {
    let random = &mut Random::new(Case::seed(name));
    let shape = [1, 1, length, DIM];
    let [q, k, v] = [(); 3].map(|()| random.normals(length * DIM, F16));
    let q_dev = Tensor::from_f32(ctx, F16, &q, shape)?;
    let k_dev = Tensor::from_f32(ctx, F16, &k, shape)?;
    let v_dev = Tensor::from_f32(ctx, F16, &v, shape)?;
    let out = poisoned(ctx, F16, shape)?;
    let lse = poisoned(ctx, F32, [1, 1, length])?;
    let args = AttentionArgs {
        lse: Some(&lse),
        ..AttentionArgs::new(&q_dev, &k_dev, &v_dev, &out)
    };
    let plan = Attention::new(mask).plan(ctx.capabilities(), args.layouts())?;
    ctx.record(|pass| plan.launch(pass, args))?;
    let taken = plan.scratch_bytes();
    if taken > 4 * length as u64 {
        return Err(Failure::Wrong(format!("{taken} bytes for {length} tokens")));
    }

    let (out, lse) = (out.to_f32_vec()?, lse.to_f32_vec()?);
    if let Some(bad) = out.iter().chain(&lse).position(|x| !x.is_finite()) {
        return Err(Failure::Wrong(format!("element {bad} is not finite")));
    }
    let mut outcome = Outcome::default();
    let last = length - 1;
    for row in [0, 1, 63, 64, length / 3, length / 2, last - 1, last] {
        // Alone, a row stands at the last of the keys up to its own.
        let problem = Problem {
            batch: 1,
            heads: 1,
            kv_heads: 1,
            q_len: 1,
            kv_len: row + 1,
            head_dim: DIM,
            v_dim: DIM,
            mask,
            scale: 1.0 / (DIM as f32).sqrt(),
            modifiers: Modifiers::default(),
        };
        let q = &q[row * DIM..][..DIM];
        let (exact, exact_lse) =
            attention(&problem, &widen(q), &widen(&k), &widen(&v), |_| Some(0.0));
        let (naive, naive_lse) = naive(&plan, &problem, [q, &k, &v], &exact, F16, |_| Some(0.0));
        let own = &out[row * DIM..][..DIM];
        outcome = outcome
            .and(check_in(F16, own, &exact, &naive, out_slack(length))?)
            .and(check(
                &lse[row..=row],
                &exact_lse,
                &naive_lse,
                lse_slack(length),
            )?);
    }
    Ok(outcome)
}
