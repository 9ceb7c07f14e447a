//! Softmax and log-softmax: ggml's lengths, scales and masks, large values, masked rows, a very long row.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::rows::{Access, RowTuning};
use flashwave::kernels::softmax::{Softmax, SoftmaxKind};
use flashwave::reference::Real;
use flashwave::reference::softmax::softmax;
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::probes::{self, INFINITIES, NAN, keeps_nan, packs_infinities};
use crate::tolerance::{Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

const KINDS: [SoftmaxKind; 2] = [SoftmaxKind::Softmax, SoftmaxKind::Log];
/// ggml's {16, 1024} and each minus one, and one below the vector's width.
const LENGTHS: [usize; 5] = [3, 15, 16, 1023, 1024];
/// x, mask, y.
const TYPES: [[DType; 3]; 3] = [[F32, F32, F32], [F16, F16, F16], [F32, BF16, BF16]];

#[derive(Clone, Debug)]
struct Setup {
    kind: SoftmaxKind,
    rows: usize,
    cols: usize,
    types: [DType; 3],
    mask_rows: Option<usize>,
    scale: f32,
    /// What every element of x is multiplied by and moved by.
    spread: (f32, f32),
    tuning: Option<RowTuning>,
}

impl Setup {
    fn new(kind: SoftmaxKind, rows: usize, cols: usize, types: [DType; 3]) -> Self {
        let (mask_rows, scale, spread, tuning) = (None, 1.0, (1.0, 0.0), None);
        Self {
            kind,
            rows,
            cols,
            types,
            mask_rows,
            scale,
            spread,
            tuning,
        }
    }

    /// exp is 3 + 2|u| ulp; the average of |u| weighted by the result is at most ln(cols), since entropy is. The sum has
    /// the same, 1 / total 2.5; log is 3 ulp or 2^-21.
    fn slack(&self) -> Ulps {
        let exps = 2.0 * (3.0 + 2.0 * (self.cols as f64).ln());
        match self.kind {
            SoftmaxKind::Softmax => Ulps(2.0 * (exps + 2.5)),
            SoftmaxKind::Log => Ulps(exps + 8.0),
        }
    }

    fn reference<R: Real>(&self, x: &[R], mask: Option<&[R]>) -> Vec<R> {
        let scale = R::of(self.scale.into());
        let row = |(r, row): (usize, &[R])| {
            let masked = |(c, &v): (usize, &R)| {
                let add = mask
                    .zip(self.mask_rows)
                    .map(|(m, n)| m[r % n * self.cols + c]);
                v * scale + add.unwrap_or(R::zero())
            };
            softmax(
                self.kind,
                &row.iter().enumerate().map(masked).collect::<Vec<R>>(),
            )
        };
        x.chunks(self.cols).enumerate().flat_map(row).collect()
    }

    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let &Self {
            kind,
            rows,
            cols,
            types: [tx, tm, ty],
            scale,
            spread: (factor, shift),
            ..
        } = self;
        if kind == SoftmaxKind::Log
            && ty == F16
            && self.mask_rows.is_some()
            && !packs_infinities(ctx)?
        {
            return Ok(Outcome::skipped(INFINITIES));
        }
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let mut host = random.normals(rows * cols, tx);
        host.iter_mut()
            .for_each(|v| *v = round(*v * factor + shift, tx));
        let mask = self.mask_rows.map(|n| {
            let mut mask = random.normals(n * cols, tm);
            // A third is masked out, and the whole of the mask's last row.
            for (i, v) in mask.iter_mut().enumerate() {
                if random.below(3) == 0 || (n > 1 && i >= (n - 1) * cols) {
                    *v = f32::NEG_INFINITY;
                }
            }
            mask
        });
        let x = Tensor::from_f32(ctx, tx, &host, [rows, cols])?;
        let mask_in = match (&mask, self.mask_rows) {
            (Some(mask), Some(n)) => Some(Tensor::from_f32(ctx, tm, mask, [n, cols])?),
            _ => None,
        };
        let y = poisoned(ctx, ty, [rows, cols])?;
        let op = Softmax { kind, scale };
        ctx.record(|pass| match self.tuning {
            None => op.run(pass, &x, mask_in.as_ref(), &y),
            Some(tuning) => op.run_with(pass, &x, mask_in.as_ref(), &y, tuning),
        })?;
        let exact = self.reference(&widen(&host), mask.as_deref().map(widen).as_deref());
        let naive = self.reference(&host, mask.as_deref());
        let naive: Vec<f32> = naive.into_iter().map(|v| round(v, ty)).collect();
        check(&y.to_f32_vec()?, &exact, &naive, self.slack())
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let mut push = |group: &str, setup: Setup| {
            let group = format!("{kind:?} {group}").to_lowercase();
            cases.push(Case::new(
                "softmax",
                group,
                format!("{setup:?}"),
                move |ctx| setup.run(ctx),
            ));
        };
        let plain = |i: usize| Setup::new(kind, 6, LENGTHS[i], TYPES[i % 3]);
        for i in 0..LENGTHS.len() {
            push("rows", plain(i));
        }
        for i in 0..LENGTHS.len() {
            push(
                "masks",
                Setup {
                    mask_rows: Some(3),
                    scale: 0.1,
                    ..plain(i)
                },
            );
            push(
                "masks",
                Setup {
                    mask_rows: Some(1),
                    ..plain(i)
                },
            );
        }
        for spread in [
            (30.0, 0.0),
            (1.0, 1e5),
            (1.0, -1e5),
            (0.0, 1.0),
            (0.0, f32::NEG_INFINITY),
        ] {
            // 0 times a value, moved by -inf: every row is masked out.
            push(
                "large values",
                Setup {
                    spread,
                    ..Setup::new(kind, 3, 16, TYPES[0])
                },
            );
        }
        push("many rows", Setup::new(kind, 300, 16, TYPES[0]));
        let read_again = |team, rows| {
            Some(RowTuning {
                team,
                rows,
                unroll: 0,
                access: Access::Four,
            })
        };
        let long = Setup::new(kind, 5, 1023, TYPES[1]);
        push(
            "read again",
            Setup {
                tuning: read_again(64, 1),
                mask_rows: Some(5),
                ..long
            },
        );
        let short = Setup::new(kind, 6, 16, TYPES[0]);
        push(
            "read again",
            Setup {
                tuning: read_again(8, 4),
                mask_rows: Some(3),
                ..short
            },
        );
        // 16-byte accesses, ragged teams and rows; 8 invocations are a subgroup of lavapipe's, 32 four of them.
        for (team, rows, unroll) in [(8, 4, 16), (32, 2, 4)] {
            let tuning = Some(RowTuning {
                team,
                rows,
                unroll,
                access: Access::Eight,
            });
            let setup = Setup {
                tuning,
                mask_rows: Some(3),
                ..Setup::new(kind, 6, 264, TYPES[1])
            };
            push("wide accesses", setup);
        }
        push("long row", Setup::new(kind, 1, 200_001, TYPES[0]));
    }
    let nans = |ctx: &Context, rows: &[[f32; 3]]| -> flashwave::Result<Vec<bool>> {
        let x = Tensor::from_slice(ctx, rows.as_flattened(), [rows.len(), 3])?;
        let y = Softmax::new().forward(&x, None)?.to_f32_vec()?;
        Ok(y.iter().map(|v| v.is_nan()).collect())
    };
    let masked = Case::new("softmax", "infinity", "-inf", move |ctx| {
        check_equal(&nans(ctx, &[[0.0, 0.0, f32::NEG_INFINITY]])?, &[false; 3])
    });
    // Infinity minus itself is NaN.
    let spoilt = Case::new("softmax", "nan", "nan, inf", move |ctx| {
        if !keeps_nan(ctx)? {
            return Ok(Outcome::skipped(NAN));
        }
        let rows = [[1.0, f32::NAN, 2.0], [0.0, 1.0, f32::INFINITY]];
        check_equal(&nans(ctx, &rows)?, &[true; 6])
    });
    cases.extend([masked, spoilt]);
    cases
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = vec![probes::exp(caps).expect("plans")];
    for kind in KINDS {
        for [tx, tm, ty] in TYPES {
            for (rows, cols) in [(1, 4096), (6, 33), (300, 64), (300, 4099), (2, 200_000)] {
                let found = (|| {
                    let x = Layout::contiguous(tx, [rows, cols])?;
                    let mask = Layout::contiguous(tm, [1, cols])?;
                    let y = Layout::contiguous(ty, [rows, cols])?;
                    let op = Softmax { kind, scale: 0.5 };
                    let mut found = vec![
                        op.plan(caps, &x, None, &y)?,
                        op.plan(caps, &x, Some(&mask), &y)?,
                    ];
                    if tx == F16 {
                        for tuning in RowTuning::candidates(caps, tx, rows, cols) {
                            found.push(op.plan_with(caps, &x, None, &y, tuning)?);
                        }
                    }
                    Ok::<_, flashwave::Error>(found)
                })();
                launches.extend(found.expect("plans"));
            }
        }
    }
    launches
}
