//! RMSNorm and LayerNorm: ggml's lengths and eps, residuals, views, means far from zero, every tuning.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::norm::{Norm, NormArgs, NormKind, Residual};
use flashwave::kernels::rows::{Access, RowTuning};
use flashwave::reference::norm::normalise;
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

const KINDS: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];
/// ggml's grid; 1025 is ragged and takes the most invocations.
const LENGTHS: [usize; 5] = [33, 64, 132, 260, 1025];
const EPS: [f32; 5] = [0.0, 1e-6, 1e-4, 1e-1, 10.0];
/// x, weight, y.
const TYPES: [[DType; 3]; 3] = [[F32, F32, F32], [F16, F32, F16], [BF16, BF16, F32]];

/// inverseSqrt 2 ulp and one division of 2.5.
const SLACK: Ulps = Ulps(2.0 * (2.0 + 2.5));

#[derive(Clone, Copy, Debug, PartialEq)]
enum Add {
    None,
    InPlace,
    Into(DType),
}

#[derive(Clone, Copy)]
enum Input {
    Normal,
    /// A mean that is many standard deviations from zero.
    Shifted,
}

#[derive(Clone)]
struct Setup {
    kind: NormKind,
    rows: usize,
    cols: usize,
    types: [DType; 3],
    add: Add,
    input: Input,
    /// Elements before and after every row of x and y that belong to no row.
    margins: [usize; 2],
    tuning: Option<RowTuning>,
}

impl Setup {
    fn new(kind: NormKind, rows: usize, cols: usize, types: [DType; 3]) -> Self {
        Self {
            kind,
            rows,
            cols,
            types,
            add: Add::None,
            input: Input::Normal,
            margins: [0; 2],
            tuning: None,
        }
    }

    fn name(&self) -> String {
        let Self {
            kind,
            rows,
            cols,
            types,
            add,
            margins,
            tuning,
            ..
        } = self;
        format!("{kind:?} {rows}x{cols} {types:?} {add:?} {margins:?} {tuning:?}")
    }

    /// A view of `rows x cols` in a wider tensor.
    fn view(&self, whole: &Tensor) -> flashwave::Result<Tensor> {
        whole.narrow(1, self.margins[0]..self.margins[0] + self.cols)
    }

    fn inner(&self, whole: &[f32]) -> Vec<f32> {
        let [before, after] = self.margins;
        let row = |row: &[f32]| row[before..before + self.cols].to_vec();
        whole
            .chunks(before + self.cols + after)
            .flat_map(row)
            .collect()
    }

    fn run(&self, ctx: &Context, eps: f32) -> Result<Outcome, Failure> {
        let Self {
            kind,
            rows,
            cols,
            types: [tx, tw, ty],
            ..
        } = *self;
        let mut random = Random::new(Case::seed(&self.name()));
        let width = cols + self.margins[0] + self.margins[1];
        let mut x = random.normals(rows * width, tx);
        if matches!(self.input, Input::Shifted) {
            x.iter_mut()
                .for_each(|v| *v = round(*v * 0.25 + 1000.0, tx));
        }
        let add = random.normals(rows * cols, ty);
        let weight = random.normals(cols, tw);
        let bias = random.normals(cols, tw);
        let x_whole = Tensor::from_f32(ctx, tx, &x, [rows, width])?;
        let y_whole = poisoned(ctx, ty, [rows, width])?;
        let (x_in, y_out) = (self.view(&x_whole)?, self.view(&y_whole)?);
        let add_in = Tensor::from_f32(ctx, ty, &add, [rows, cols])?;
        let weight_in = Tensor::from_f32(ctx, tw, &weight, [cols])?;
        let bias_in = Tensor::from_f32(ctx, tw, &bias, [cols])?;
        let sum_type = if let Add::Into(dtype) = self.add {
            dtype
        } else {
            tx
        };
        let sum_out = poisoned(ctx, sum_type, [rows, cols])?;
        let biased = kind == NormKind::Layer;
        let args = NormArgs {
            x: &x_in,
            residual: match self.add {
                Add::None => Residual::None,
                Add::InPlace => Residual::InPlace(&add_in),
                Add::Into(_) => Residual::Into {
                    add: &add_in,
                    sum: &sum_out,
                },
            },
            weight: Some(&weight_in),
            bias: biased.then_some(&bias_in),
            y: &y_out,
        };
        let norm = Norm { kind, eps };
        ctx.record(|pass| match self.tuning {
            None => norm.run(pass, args),
            Some(tuning) => norm.run_with(pass, args, tuning),
        })?;

        let x_inner = self.inner(&x);
        let summed = self.add != Add::None;
        // Naive arithmetic normalises the sum as it is stored, the oracle the sum itself.
        let h: Vec<f32> = match summed {
            false => x_inner.clone(),
            true => (x_inner.iter().zip(&add))
                .map(|(x, a)| round(x + a, sum_type))
                .collect(),
        };
        let exact_h: Vec<f64> = match summed {
            false => widen(&x_inner),
            true => (x_inner.iter().zip(&add))
                .map(|(&x, &a)| f64::from(x) + f64::from(a))
                .collect(),
        };
        let mut outcome = Outcome::default();
        match self.add {
            Add::None => {}
            Add::InPlace => {
                let after = x_whole.to_f32_vec()?;
                outcome = outcome.and(check_equal(&self.inner(&after), &h)?);
                outcome = outcome.and(untouched(self, &after, &x)?);
            }
            Add::Into(_) => outcome = outcome.and(check_equal(&sum_out.to_f32_vec()?, &h)?),
        }
        let bias = biased.then_some(bias);
        let exact: Vec<f64> = {
            let (w, b) = (widen(&weight), bias.as_deref().map(widen));
            let row = |h: &[f64]| normalise(kind, eps.into(), h, Some(&w), b.as_deref());
            exact_h.chunks(cols).flat_map(row).collect()
        };
        let row = |h: &[f32]| normalise(kind, eps, h, Some(&weight), bias.as_deref());
        let naive: Vec<f32> = h.chunks(cols).flat_map(row).map(|v| round(v, ty)).collect();
        let after = y_whole.to_f32_vec()?;
        let poison = vec![f32::NAN; after.len()];
        Ok(outcome.and(untouched(self, &after, &poison)?).and(check(
            &self.inner(&after),
            &exact,
            &naive,
            SLACK,
        )?))
    }
}

/// The margins around the rows are as they were.
fn untouched(setup: &Setup, after: &[f32], before: &[f32]) -> Result<Outcome, Failure> {
    let width = setup.margins[0] + setup.cols + setup.margins[1];
    let part = setup.margins[0]..setup.margins[0] + setup.cols;
    let outside = |i: &usize| !part.contains(&(i % width));
    let bits = |v: &[f32]| -> Vec<bool> {
        (0..v.len())
            .filter(outside)
            .map(|i| v[i].to_bits() == before[i].to_bits() || v[i].is_nan() && before[i].is_nan())
            .collect()
    };
    let kept = bits(after);
    check_equal(&kept, &vec![true; kept.len()])
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |group: String, setup: Setup, eps: &'static [f32]| {
        let name = setup.name();
        cases.push(Case::new("norm", group, name, move |ctx| {
            let mut outcome = Outcome::default();
            for &eps in eps {
                outcome = outcome.and(setup.run(ctx, eps)?);
            }
            Ok(outcome)
        }));
    };
    for kind in KINDS {
        let group = |what: &str| format!("{kind:?} {what}").to_lowercase();
        for (i, cols) in LENGTHS.into_iter().enumerate() {
            let setup = Setup::new(kind, 5, cols, TYPES[i % 3]);
            push(group("rows"), setup, &EPS);
        }
        for (cols, types) in [(33, TYPES[1]), (132, TYPES[0]), (64, TYPES[2])] {
            for add in [Add::InPlace, Add::Into(F32), Add::Into(F16)] {
                let margins = if cols == 33 { [3, 2] } else { [4, 8] };
                let setup = Setup {
                    add,
                    margins,
                    ..Setup::new(kind, 3, cols, types)
                };
                push(group("residual"), setup, &[1e-6]);
            }
        }
        for rows in [1, 300] {
            push(
                group("one and many"),
                Setup::new(kind, rows, 132, TYPES[0]),
                &[1e-6],
            );
        }
        for add in [Add::None, Add::InPlace, Add::Into(F16)] {
            let tuning = Some(RowTuning {
                team: 64,
                rows: 1,
                unroll: 0,
                access: Access::Four,
            });
            let setup = Setup {
                add,
                tuning,
                ..Setup::new(kind, 3, 1025, TYPES[1])
            };
            push(group("read again"), setup, &[1e-6]);
        }
        let wide = Some(RowTuning {
            team: 16,
            rows: 4,
            unroll: 0,
            access: Access::Four,
        });
        push(
            group("read again"),
            Setup {
                tuning: wide,
                ..Setup::new(kind, 7, 260, TYPES[0])
            },
            &[1e-6],
        );
        let one = Some(RowTuning {
            team: 8,
            rows: 2,
            unroll: 8,
            access: Access::Four,
        });
        push(
            group("few invocations"),
            Setup {
                tuning: one,
                ..Setup::new(kind, 5, 132, TYPES[0])
            },
            &[1e-6],
        );
        // 16-byte accesses, ragged teams and rows; 8 invocations are a subgroup of lavapipe's, 32 four of them.
        for (team, rows, unroll, add) in [
            (8, 4, 16, Add::InPlace),
            (32, 4, 8, Add::Into(F32)),
            (64, 1, 2, Add::None),
        ] {
            let tuning = Some(RowTuning {
                team,
                rows,
                unroll,
                access: Access::Eight,
            });
            let setup = Setup {
                add,
                tuning,
                margins: [8, 16],
                ..Setup::new(kind, 7, 264, TYPES[1])
            };
            push(group("wide accesses"), setup, &[1e-6]);
        }
        let shifted = Setup {
            input: Input::Shifted,
            ..Setup::new(kind, 5, 260, TYPES[0])
        };
        push(group("far from zero"), shifted, &[1e-6]);
    }
    cases
}

/// Every kind of variant: types, residuals, optional operands, wide and ragged, sizes from one team to several passes.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for kind in KINDS {
        for [tx, tw, ty] in TYPES {
            for (rows, cols) in [
                (1, 4096),
                (1, 33),
                (300, 64),
                (300, 4099),
                (3, 132),
                (2, 200_000),
            ] {
                for residual in 0..3 {
                    let found = (|| {
                        let x = Layout::contiguous(tx, [rows, cols])?;
                        let w = Layout::contiguous(tw, [cols])?;
                        let y = Layout::contiguous(ty, [rows, cols])?;
                        let args = NormArgs {
                            x: &x,
                            residual: match residual {
                                0 => Residual::None,
                                1 => Residual::InPlace(&y),
                                _ => Residual::Into { add: &x, sum: &y },
                            },
                            weight: (residual > 0).then_some(&w),
                            bias: (residual > 1).then_some(&w),
                            y: &y,
                        };
                        let norm = Norm { kind, eps: 1e-5 };
                        let mut found = vec![norm.plan(caps, &args)?];
                        if tx == F16 && residual == 0 {
                            for tuning in RowTuning::candidates(caps, tx, rows, cols) {
                                found.push(norm.plan_with(caps, &args, tuning)?);
                            }
                        }
                        Ok::<_, flashwave::Error>(found)
                    })();
                    launches.extend(found.expect("plans"));
                }
            }
        }
    }
    launches
}
