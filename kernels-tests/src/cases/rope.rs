//! Rotary embedding: ggml's head sizes and partial dims, both layouts, every scaling, starts and position tensors, in
//! place and out; the fused form with its caches.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::rope::{
    FusedQkv, FusedQkvArgs, Positions, Rope, RopeConfig, RopeLayout, RopeOut, RopeScaling,
    RopeTable,
};
use flashwave::reference::Real;
use flashwave::reference::rope::rotate;
use flashwave::{Capabilities, Context, DType, Launch, Layout, Result, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

const LAYOUTS: [RopeLayout; 2] = [RopeLayout::HalfSplit, RopeLayout::Interleaved];
/// Heads and their rotating channels: ggml's grid.
const HEADS: [(usize, usize); 8] = [
    (128, 128),
    (64, 64),
    (80, 80),
    (16, 16),
    (8, 8),
    (80, 32),
    (64, 20),
    (6, 4),
];
const SCALINGS: [RopeScaling; 5] = [
    RopeScaling::None,
    RopeScaling::Linear { factor: 2.5 },
    RopeScaling::Ntk { factor: 4.0 },
    RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 32,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    },
    RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 32,
    },
];
const POSITIONS: usize = 60;

fn config(layout: RopeLayout, dims: usize, scaling: RopeScaling) -> RopeConfig {
    RopeConfig {
        theta: 1e4,
        dims,
        layout,
        scaling,
    }
}

/// Heads of `dim` channels, one after the other, rotated by the position that each has.
fn rotated<R: Real>(
    config: &RopeConfig,
    heads: &[R],
    dim: usize,
    position: impl Fn(usize) -> usize,
) -> Result<Vec<R>> {
    let frequencies = config.frequencies(dim)?;
    let factor = config.attention_factor();
    let one = |(i, head): (usize, &[R])| {
        let angles = frequencies.iter().map(|f| f * position(i) as f64);
        let (sines, cosines): (Vec<R>, Vec<R>) = angles
            .map(|a| (R::of(a.sin() * factor), R::of(a.cos() * factor)))
            .unzip();
        rotate(config.layout, head, &cosines, &sines)
    };
    Ok(heads.chunks(dim).enumerate().flat_map(one).collect())
}

fn compare(
    out: &[f32],
    config: &RopeConfig,
    heads: &[f32],
    dim: usize,
    dtype: DType,
    position: impl Fn(usize) -> usize,
) -> Result<Outcome, Failure> {
    let exact = rotated(config, &widen(heads), dim, &position)?;
    let naive = rotated(config, heads, dim, &position)?;
    let naive: Vec<f32> = naive.into_iter().map(|v| round(v, dtype)).collect();
    check(out, &exact, &naive, Ulps(0.0))
}

#[derive(Clone, Copy, Debug)]
enum At {
    Start(usize),
    Tensor,
}

#[derive(Clone, Copy, Debug)]
enum Out {
    InPlace,
    Into(DType),
}

#[derive(Clone, Debug)]
struct Setup {
    config: RopeConfig,
    dim: usize,
    dtype: DType,
    at: At,
    out: Out,
}

impl Setup {
    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let Self {
            config,
            dim,
            dtype,
            at,
            out,
        } = self.clone();
        let (tokens, heads) = (5, 3);
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let table = RopeTable::new(ctx, &config, dim, POSITIONS)?;
        let host = random.normals(tokens * heads * dim, dtype);
        // [heads, tokens, dim] in memory, seen as [tokens, heads, dim].
        let memory = Tensor::from_f32(ctx, dtype, &host, [heads, tokens, dim])?;
        let x = memory.transpose(0, 1)?;
        let ids: Vec<u32> = (0..tokens)
            .map(|_| random.below(POSITIONS) as u32)
            .collect();
        // In the middle of a longer list.
        let list = [&[u32::MAX], ids.as_slice()].concat();
        let ids_in = Tensor::from_slice(ctx, &list, [tokens + 1])?.narrow(0, 1..tokens + 1)?;
        let positions = match at {
            At::Start(start) => Positions::From(start),
            At::Tensor => Positions::Tensor(&ids_in),
        };
        let place = |token: usize| match at {
            At::Start(start) => start + token,
            At::Tensor => ids[token] as usize,
        };
        match out {
            Out::InPlace => {
                ctx.record(|pass| table.run(pass, &x, positions, RopeOut::InPlace))?;
                compare(&memory.to_f32_vec()?, &config, &host, dim, dtype, |i| {
                    place(i % tokens)
                })
            }
            Out::Into(to) => {
                let y = poisoned(ctx, to, [tokens, heads, dim])?;
                ctx.record(|pass| table.run(pass, &x, positions, RopeOut::Into(&y)))?;
                let turned: Vec<f32> = (0..tokens * heads)
                    .flat_map(|i| {
                        let at = (i % heads * tokens + i / heads) * dim;
                        host[at..at + dim].to_vec()
                    })
                    .collect();
                compare(&y.to_f32_vec()?, &config, &turned, dim, to, |i| {
                    place(i / heads)
                })
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Fused {
    config: RopeConfig,
    dim: usize,
    /// qkv, q's place, caches.
    dtype: DType,
    out: Out,
    cache: DType,
    tokens: usize,
    start: usize,
}

impl Fused {
    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const LENGTH: usize = 40;

    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let Self {
            config,
            dim,
            dtype,
            out,
            cache,
            tokens,
            start,
        } = self.clone();
        let (heads, kv_heads) = (Self::HEADS, Self::KV_HEADS);
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let table = RopeTable::new(ctx, &config, dim, POSITIONS)?;
        let width = (heads + 2 * kv_heads) * dim;
        let host = random.normals(tokens * width, dtype);
        let qkv = Tensor::from_f32(ctx, dtype, &host, [tokens, width])?;
        // One layer of a cache of three, heads inside positions for the values.
        let k_all = poisoned(ctx, cache, [3, kv_heads, Self::LENGTH, dim])?;
        let v_all = poisoned(ctx, cache, [3, Self::LENGTH, kv_heads, dim])?;
        let k_cache = k_all
            .narrow(0, 1..2)?
            .reshape([kv_heads, Self::LENGTH, dim])?;
        let v_cache = v_all
            .narrow(0, 2..3)?
            .reshape([Self::LENGTH, kv_heads, dim])?;
        let v_view = v_cache.transpose(0, 1)?;
        let q = poisoned(
            ctx,
            if let Out::Into(q) = out { q } else { dtype },
            [tokens, heads, dim],
        )?;
        let args = FusedQkvArgs {
            qkv: &qkv,
            q_out: match out {
                Out::InPlace => RopeOut::InPlace,
                Out::Into(_) => RopeOut::Into(&q),
            },
            k_cache: &k_cache,
            v_cache: &v_view,
        };
        let op = FusedQkv {
            heads,
            kv_heads,
            start,
        };
        ctx.record(|pass| op.run(pass, &table, args))?;

        let part = |of: &[f32], from: usize, count: usize| -> Vec<f32> {
            of.chunks(width)
                .flat_map(|row| row[from * dim..(from + count) * dim].to_vec())
                .collect()
        };
        let (got_q, q_type) = match out {
            Out::InPlace => {
                let after = qkv.to_f32_vec()?;
                check_equal(
                    &part(&after, heads, 2 * kv_heads),
                    &part(&host, heads, 2 * kv_heads),
                )?;
                (part(&after, 0, heads), dtype)
            }
            Out::Into(to) => (q.to_f32_vec()?, to),
        };
        let outcome = compare(&got_q, &config, &part(&host, 0, heads), dim, q_type, |i| {
            start + i / heads
        })?;

        // Written positions as [tokens, kv_heads, dim]; everything else still poison.
        let (k_all, v_all) = (k_all.to_f32_vec()?, v_all.to_f32_vec()?);
        let finite = |all: &[f32]| all.iter().filter(|v| v.is_finite()).count();
        let expected = tokens * kv_heads * dim;
        check_equal(&[finite(&k_all), finite(&v_all)], &[expected, expected])?;
        let gather = |all: &[f32], at: &dyn Fn(usize, usize) -> usize| -> Vec<f32> {
            let pairs = (0..tokens).flat_map(|t| (0..kv_heads).map(move |h| (t, h)));
            pairs
                .flat_map(|(t, h)| all[at(start + t, h) * dim..][..dim].to_vec())
                .collect()
        };
        let got_k = gather(&k_all, &|p, h| (kv_heads + h) * Self::LENGTH + p);
        let got_v = gather(&v_all, &|p, h| (2 * Self::LENGTH + p) * kv_heads + h);
        let k = part(&host, heads, kv_heads);
        let v: Vec<f32> = part(&host, heads + kv_heads, kv_heads);
        let v: Vec<f32> = v.into_iter().map(|v| round(v, cache)).collect();
        Ok(outcome
            .and(compare(&got_k, &config, &k, dim, cache, |i| {
                start + i / kv_heads
            })?)
            .and(check_equal(&got_v, &v)?))
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for layout in LAYOUTS {
        let mut push = |group: &str, setup: Setup| {
            let group = format!("{layout:?} {group}").to_lowercase();
            cases.push(Case::new("rope", group, format!("{setup:?}"), move |ctx| {
                setup.run(ctx)
            }));
        };
        let plain = |dim, dims| Setup {
            config: config(layout, dims, RopeScaling::None),
            dim,
            dtype: F32,
            at: At::Start(3),
            out: Out::Into(F32),
        };
        for (i, (dim, dims)) in HEADS.into_iter().enumerate() {
            let out = if i % 2 == 0 {
                Out::InPlace
            } else {
                Out::Into(F32)
            };
            push(
                "heads",
                Setup {
                    out,
                    ..plain(dim, dims)
                },
            );
        }
        for scaling in SCALINGS {
            push(
                "scalings",
                Setup {
                    config: config(layout, 16, scaling),
                    ..plain(16, 16)
                },
            );
        }
        for (dtype, out) in [
            (F16, Out::InPlace),
            (BF16, Out::Into(F16)),
            (F16, Out::Into(BF16)),
        ] {
            for (dim, dims) in [(32, 16), (10, 6)] {
                push(
                    "types",
                    Setup {
                        dtype,
                        out,
                        at: At::Tensor,
                        ..plain(dim, dims)
                    },
                );
            }
        }
    }
    for layout in LAYOUTS {
        for (dtype, out, cache) in [
            (F32, Out::Into(F32), F32),
            (F32, Out::InPlace, F16),
            (F16, Out::InPlace, F16),
            (F32, Out::Into(F16), BF16),
        ] {
            for (dim, dims, tokens, start) in [
                (64, 64, 1, 17),
                (16, 16, 7, 0),
                (80, 32, 3, 37),
                (10, 4, 5, 2),
            ] {
                let setup = Fused {
                    config: config(layout, dims, RopeScaling::None),
                    dim,
                    dtype,
                    out,
                    cache,
                    tokens,
                    start,
                };
                let group = format!("{layout:?} fused qkv").to_lowercase();
                cases.push(Case::new("rope", group, format!("{setup:?}"), move |ctx| {
                    setup.run(ctx)
                }));
            }
        }
    }
    cases.push(Case::new(
        "rope",
        "positions beyond the table",
        "positions beyond the table",
        |ctx| {
            let config = config(RopeLayout::HalfSplit, 8, RopeScaling::None);
            let table = RopeTable::new(ctx, &config, 8, POSITIONS)?;
            let host = Random::new(1).normals(2 * 8, F32);
            let x = Tensor::from_slice(ctx, &host, [2, 1, 8])?;
            let ids = Tensor::from_slice(ctx, &[POSITIONS as u32, u32::MAX], [2])?;
            let y = table.forward(&x, Positions::Tensor(&ids))?;
            compare(&y.to_f32_vec()?, &config, &host, 8, F32, |_| POSITIONS - 1)
        },
    ));
    cases
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for layout in LAYOUTS {
        for (dim, dims) in [(128, 128), (80, 20)] {
            let rope = Rope {
                dims,
                layout,
                positions: 64,
            };
            for (x_type, y_type) in [(F32, F32), (F16, F16), (BF16, F32), (F32, F16)] {
                let found = (|| {
                    let x = Layout::contiguous(x_type, [7, 4, dim])?;
                    let y = Layout::contiguous(y_type, [7, 4, dim])?;
                    let ids = Layout::contiguous(DType::U32, [7])?;
                    let qkv = Layout::contiguous(x_type, [7, 8 * dim])?;
                    let cache = Layout::contiguous(y_type, [2, 64, dim])?;
                    let op = FusedQkv {
                        heads: 4,
                        kv_heads: 2,
                        start: 5,
                    };
                    let mut found = Vec::new();
                    for out in [RopeOut::InPlace, RopeOut::Into(&y)] {
                        for positions in [Positions::From(1), Positions::Tensor(&ids)] {
                            found.push(rope.plan(caps, &x, positions, out)?);
                        }
                        let args = FusedQkvArgs {
                            qkv: &qkv,
                            q_out: out,
                            k_cache: &cache,
                            v_cache: &cache,
                        };
                        found.push(op.plan(caps, rope, &args)?);
                    }
                    Ok::<_, flashwave::Error>(found)
                })();
                launches.extend(found.expect("plans"));
            }
        }
    }
    launches
}
