//! What the measuring kernels compute is right, so that what they are timed at is work done.

use flashwave::DType::{F16, F32};
use flashwave::kernels::ceilings::{FMA_FACTORS, INT8_FACTOR, Plan, Probe, Tuning};
use flashwave::reference::ceilings::{dot4_chains, fma_chains, tile_products};
use flashwave::{Capabilities, Context, Launch, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

/// Small layouts: more workgroups than chunks and fewer.
fn small(probe: Probe) -> Vec<(Tuning, u32)> {
    let tuning = |workgroup, unroll, chains, groups| Tuning {
        workgroup,
        unroll,
        chains,
        groups,
    };
    match probe {
        Probe::Read | Probe::Copy => {
            vec![(tuning(64, 2, [1, 1], 3), 7), (tuning(64, 2, [1, 1], 5), 2)]
        }
        Probe::F32 => vec![(tuning(64, 2, [3, 4], 2), 3)],
        Probe::F16 => vec![(tuning(64, 2, [3, 4], 2), 3), (tuning(64, 1, [2, 2], 1), 2)],
        Probe::Int8 => vec![(tuning(64, 2, [3, 1], 2), 4)],
        Probe::Cooperative => vec![(tuning(128, 2, [2, 3], 2), 3)],
        Probe::Empty => vec![(tuning(1, 1, [1, 1], 1), 0)],
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let each = Probe::ALL.into_iter().flat_map(|probe| {
        small(probe)
            .into_iter()
            .map(move |(tuning, amount)| (probe, tuning, amount))
    });
    let cases = each.map(|(probe, tuning, amount)| {
        let name = format!("{} {tuning:?} x {amount}", probe.name());
        Case::new("ceilings", probe.name(), name.clone(), move |ctx| {
            // What a device lacks is not measured on it either.
            if let Some(missing) = probe.missing(ctx.capabilities()) {
                return Ok(Outcome::skipped(missing));
            }
            let plan = probe.plan(ctx.capabilities(), tuning, amount)?;
            run(ctx, probe, tuning, amount, &plan, Case::seed(&name))
        })
    });
    cases.collect()
}

fn run(
    ctx: &Context,
    probe: Probe,
    tuning: Tuning,
    amount: u32,
    plan: &Plan,
    seed: u64,
) -> Result<Outcome, Failure> {
    let mut random = Random::new(seed);
    let launch = |inputs: &[&Tensor]| ctx.record(|pass| pass.launch(&plan.launch, inputs));
    let words: Vec<u32> = (0..plan.input).map(|_| random.bits() as u32).collect();
    let poison = vec![0xdead_beef_u32; plan.output];
    let rounds = (amount * tuning.unroll) as usize;
    let lanes = tuning.workgroup as usize;
    match probe {
        Probe::Read => {
            let x = Tensor::from_slice(ctx, &words, [words.len()])?;
            let y = Tensor::from_slice(ctx, &poison, [poison.len()])?;
            launch(&[&x, &y])?;
            let mut expected = vec![0u32; plan.output];
            for (vector, four) in words.chunks_exact(4).enumerate() {
                let group = vector / (lanes * tuning.unroll as usize) % tuning.groups as usize;
                let out = &mut expected[group * lanes + vector % lanes];
                *out = four.iter().fold(*out, |sum, &w| sum.wrapping_add(w));
            }
            check_equal(&y.to_vec::<u32>()?, &expected)
        }
        Probe::Copy => {
            let x = Tensor::from_slice(ctx, &words, [words.len()])?;
            let y = Tensor::from_slice(ctx, &poison, [poison.len()])?;
            launch(&[&x, &y])?;
            check_equal(&y.to_vec::<u32>()?, &words)
        }
        Probe::F32 | Probe::F16 => {
            let y = poisoned(ctx, F32, [plan.output])?;
            launch(&[&y])?;
            let sizes = [tuning.chains[0] as usize, tuning.chains[1] as usize, rounds];
            let half: fn(f32) -> f32 = match probe {
                Probe::F16 => |x| round(x, F16),
                _ => |x| x,
            };
            let of = |i: usize| i % lanes;
            let exact: Vec<f64> = (0..plan.output)
                .map(|i| fma_chains(of(i), sizes, FMA_FACTORS, |x| x))
                .collect();
            let naive: Vec<f32> = (0..plan.output)
                .map(|i| fma_chains(of(i), sizes, FMA_FACTORS, half))
                .collect();
            check(&y.to_f32_vec()?, &exact, &naive, Ulps(0.0))
        }
        Probe::Int8 => {
            let y = poisoned(ctx, F32, [plan.output])?;
            launch(&[&y])?;
            let (chains, steps) = (tuning.chains[0], rounds as u32);
            let expected: Vec<i32> = (0..plan.output)
                .map(|i| dot4_chains((i % lanes) as u32, chains, steps, INT8_FACTOR))
                .collect();
            let out: Vec<i32> = y
                .to_vec::<f32>()?
                .iter()
                .map(|v| v.to_bits() as i32)
                .collect();
            check_equal(&out, &expected)
        }
        Probe::Cooperative => {
            // Small integers: sums are exact in whichever order and however the device rounds.
            let host: Vec<f32> = (0..plan.input)
                .map(|_| random.below(9) as f32 - 4.0)
                .collect();
            let x = Tensor::from_f32(ctx, F16, &host, [host.len()])?;
            let y = poisoned(ctx, F32, [plan.output])?;
            launch(&[&x, &y])?;
            let tiles = tuning.chains.map(|c| c as usize);
            let expected: Vec<f32> = tile_products(&widen(&host), tiles, rounds)
                .into_iter()
                .map(|v| v as f32)
                .collect();
            let all = expected.repeat(plan.output / 256);
            check_equal(&y.to_f32_vec()?, &all)
        }
        Probe::Empty => {
            let y = Tensor::from_slice(ctx, &poison, [poison.len()])?;
            launch(&[&y])?;
            check_equal(&y.to_vec::<u32>()?, &poison)
        }
    }
}

/// Every variant that a device is measured with, and those of the matrix.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for probe in Probe::ALL {
        let tunings = probe.candidates(caps).into_iter().map(|t| (t, 8));
        let plans = tunings
            .chain(small(probe))
            .filter_map(|(tuning, amount)| probe.plan(caps, tuning, amount).ok());
        launches.extend(plans.map(|p| p.launch));
    }
    launches
}
