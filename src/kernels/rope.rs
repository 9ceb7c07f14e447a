//! Rotary position embedding (RoPE, arXiv 2104.09864), alone and fused with what follows a query-key-value product.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::sparse::SparseLayout;
use crate::layout::Layout;
use crate::recipe::{Constant, Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Which two channels of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Channels `i` and `i + dims/2` (GPT-NeoX, Hugging Face's Llama).
    HalfSplit,
    /// Channels `2i` and `2i + 1` (RoFormer's paper, llama2.c, GGUF's Llama).
    Interleaved,
}

/// How frequencies are changed for contexts longer than those trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Positions divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// The stretch, at least 1.
        factor: f64,
    },
    /// The base raised so that the lowest frequency stretches by `factor` ("NTK-aware").
    Ntk {
        /// The stretch, at least 1.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// The stretch, at least 1.
        factor: f64,
        /// Context length of training.
        original_max_positions: u32,
        /// Rotations above which a channel is not interpolated (paper: 32).
        beta_fast: f64,
        /// Rotations below which a channel is fully interpolated (paper: 1).
        beta_slow: f64,
        /// Multiplies cosine and sine; `None` for the paper's 0.1 ln(factor) + 1.
        attention_factor: Option<f64>,
    },
    /// Llama 3.1's piecewise scaling (Hugging Face's `rope_type: llama3`).
    Llama3 {
        /// The stretch of the low frequencies.
        factor: f64,
        /// Wavelengths over `original_max_positions / low_freq_factor` stretch fully.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_positions / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context length of training.
        original_max_positions: u32,
    },
}

/// A rotary embedding: which channels, how fast, how scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies, 10000 in the paper.
    pub theta: f64,
    /// How many leading channels of each head rotate (even, at most head_dim); the rest pass through.
    pub dims: usize,
    /// Which channels pair.
    pub layout: RopeLayout,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
}

impl RopeLayout {
    const fn name(self) -> &'static str {
        match self {
            Self::HalfSplit => "half_split",
            Self::Interleaved => "interleaved",
        }
    }
}

impl RopeConfig {
    /// By how many radians each pair of channels turns from one position to the next: the formulas of Hugging Face
    /// transformers' `modeling_rope_utils`, in f64.
    ///
    /// Errors if `dims` is odd, zero or over `head_dim`, or if a number is not finite or outside its range.
    pub fn frequencies(&self, head_dim: usize) -> Result<Vec<f64>> {
        self.check(head_dim)?;
        let dims = self.dims as f64;
        let half = self.dims / 2;
        let series = |theta: f64| (0..half).map(move |i| theta.powf(-2.0 * i as f64 / dims));
        Ok(match self.scaling {
            RopeScaling::None => series(self.theta).collect(),
            RopeScaling::Linear { factor } => series(self.theta).map(|f| f / factor).collect(),
            RopeScaling::Ntk { factor } => {
                series(self.theta * factor.powf(dims / (dims - 2.0))).collect()
            }
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                ..
            } => {
                // The pair that makes this many rotations over the context of training.
                let pair_with = |rotations: f64| {
                    let context = f64::from(original_max_positions);
                    dims * (context / (rotations * std::f64::consts::TAU)).ln()
                        / (2.0 * self.theta.ln())
                };
                let low = pair_with(beta_fast).floor().max(0.0);
                let mut high = pair_with(beta_slow).ceil().min(dims - 1.0);
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, f): (usize, f64)| {
                    let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * interpolated + f * (1.0 - interpolated)
                };
                series(self.theta).enumerate().map(blend).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let blend = |f: f64| {
                    let rotations = f64::from(original_max_positions) * f / std::f64::consts::TAU;
                    let kept = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    (1.0 - kept) * f / factor + kept * f
                };
                series(self.theta).map(blend).collect()
            }
        })
    }

    /// What cosines and sines are multiplied by: YaRN's attention factor, otherwise 1.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn {
                factor,
                attention_factor,
                ..
            } => attention_factor.unwrap_or(0.1 * factor.ln() + 1.0),
            _ => 1.0,
        }
    }

    fn check(&self, head_dim: usize) -> Result<()> {
        let refuse =
            |name: &str, was: String, allowed: &str| Err(Error::argument(name, was, allowed));
        if self.dims < 2 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            let allowed = format!("even, from 2 to the head's {head_dim} channels");
            return Err(Error::argument("rope dims", self.dims, allowed));
        }
        let at_least_one = |name: &str, x: f64| {
            if x.is_finite() && x >= 1.0 {
                return Ok(());
            }
            refuse(name, x.to_string(), "finite, at least 1")
        };
        if !self.theta.is_finite() || self.theta <= 1.0 {
            return refuse("rope theta", self.theta.to_string(), "finite, over 1");
        }
        let (low, high, context) = match self.scaling {
            RopeScaling::None => return Ok(()),
            RopeScaling::Linear { factor } => return at_least_one("rope factor", factor),
            RopeScaling::Ntk { factor } => {
                if self.dims < 4 {
                    return refuse(
                        "rope dims",
                        self.dims.to_string(),
                        "at least 4 for NTK scaling",
                    );
                }
                return at_least_one("rope factor", factor);
            }
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                at_least_one("rope factor", factor)?;
                if let Some(a) = attention_factor.filter(|a| !(a.is_finite() && *a > 0.0)) {
                    return refuse("rope attention_factor", a.to_string(), "finite, over 0");
                }
                (beta_slow, beta_fast, original_max_positions)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                at_least_one("rope factor", factor)?;
                (low_freq_factor, high_freq_factor, original_max_positions)
            }
        };
        if !(high.is_finite() && low > 0.0 && high > low) {
            let was = format!("{low} to {high}");
            return refuse(
                "rope frequency range",
                was,
                "finite, over 0, the higher bound over the lower",
            );
        }
        if context == 0 {
            return refuse("rope original_max_positions", "0".into(), "at least 1");
        }
        Ok(())
    }
}

/// What a table of rotations is for: which channels turn, and up to which position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rope {
    /// How many leading channels of each head rotate: even.
    pub dims: usize,
    /// Which channels pair.
    pub layout: RopeLayout,
    /// Positions below this one are in the table.
    pub positions: usize,
}

/// Cosines and sines of every position, on the GPU: f32 [positions, 2, dims / 2].
#[derive(Clone, Debug)]
pub struct RopeTable {
    rope: Rope,
    tensor: Tensor,
}

impl RopeTable {
    /// The table for positions 0 to `positions` of heads with `head_dim` channels, computed in f64.
    pub fn new(
        ctx: &Context,
        config: &RopeConfig,
        head_dim: usize,
        positions: usize,
    ) -> Result<Self> {
        let frequencies = config.frequencies(head_dim)?;
        // Before the memory is filled: this refuses what does not fit.
        let tensor = Tensor::empty(ctx, DType::F32, [positions, 2, config.dims / 2])?;
        let factor = config.attention_factor();
        let mut table = vec![0.0f32; positions * config.dims];
        let rows = table.par_chunks_mut(config.dims).enumerate();
        rows.for_each(|(position, row)| {
            let (cosines, sines) = row.split_at_mut(frequencies.len());
            for ((cosine, sine), f) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let (s, c) = (position as f64 * f).sin_cos();
                (*cosine, *sine) = ((c * factor) as f32, (s * factor) as f32);
            }
        });
        tensor.write(&table)?;
        let rope = Rope {
            dims: config.dims,
            layout: config.layout,
            positions,
        };
        Ok(Self { rope, tensor })
    }

    /// Which rotations the table holds, for planning.
    pub fn rope(&self) -> Rope {
        self.rope
    }

    /// The cosines and sines.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Records the rotation of x: [tokens, heads, head_dim].
    pub fn run(
        &self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        positions: Positions<&Tensor>,
        out: RopeOut<&Tensor>,
    ) -> Result<()> {
        let launch = self.rope.plan(
            pass.capabilities(),
            x.layout(),
            positions.map(Tensor::layout),
            out.map(Tensor::layout),
        )?;
        let mut tensors = arrayvec::ArrayVec::<&Tensor, 4>::from_iter([x, &self.tensor]);
        if let Positions::Tensor(positions) = positions {
            tensors.push(positions);
        }
        if let RopeOut::Into(y) = out {
            tensors.push(y);
        }
        pass.launch(&launch, &tensors)
    }

    /// x: [tokens, heads, head_dim], rotated, as a new tensor of x's type. Positions of a tensor that are not in the
    /// table are clamped to its last.
    pub fn forward(&self, x: &Tensor, positions: Positions<&Tensor>) -> Result<Tensor> {
        let y = Tensor::empty(x.context(), x.dtype(), x.shape())?;
        let out = RopeOut::Into(&y);
        x.context()
            .record(|pass| self.run(pass, x, positions, out))?;
        Ok(y)
    }
}

/// Which position each token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions<T> {
    /// This one and those that follow it.
    From(usize),
    /// One u32 a token, `[tokens]`; the kernel clamps it to the table.
    Tensor(T),
}

impl<T> Positions<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Positions<U> {
        match self {
            Self::From(start) => Positions::From(start),
            Self::Tensor(t) => Positions::Tensor(f(t)),
        }
    }
}

/// Where rotated heads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeOut<T> {
    /// Where they came from.
    InPlace,
    /// To this tensor: [tokens, heads, head_dim].
    Into(T),
}

impl<T> RopeOut<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> RopeOut<U> {
        match self {
            Self::InPlace => RopeOut::InPlace,
            Self::Into(t) => RopeOut::Into(f(t)),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::InPlace => "in_place",
            Self::Into(_) => "into",
        }
    }
}

/// Invocations of a workgroup: few, so that a decode step's handful of heads spreads over the device.
const WORKGROUP: usize = 64;

/// A tensor of three dimensions whose last is adjacent.
#[derive(Clone, Copy)]
struct Spread {
    offset: u32,
    outer: u32,
    inner: u32,
}

impl Spread {
    fn of(name: &str, layout: &Layout) -> Result<Self> {
        layout.require_float(name)?;
        let &[outer, inner, last] = layout.strides() else {
            return Err(Error::argument(
                name,
                format!("{layout:?}"),
                "three dimensions",
            ));
        };
        if last != 1 {
            let allowed = "adjacent elements in the last dimension";
            return Err(Error::argument(name, format!("{layout:?}"), allowed));
        }
        Ok(Self {
            offset: layout.offset() as u32,
            outer: outer as u32,
            inner: inner as u32,
        })
    }

    fn multiple_of_four(&self) -> bool {
        [self.offset, self.outer, self.inner]
            .iter()
            .all(|v| v.is_multiple_of(4))
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    total: u32,
    slots: u32,
    rotating: u32,
    heads: u32,
    half: u32,
    start: u32,
    last_position: u32,
    x_offset: u32,
    x_token: u32,
    x_head: u32,
    y_offset: u32,
    y_token: u32,
    y_head: u32,
}

impl Rope {
    /// Plans the rotation of x: [tokens, heads, head_dim]. Tokens and heads may be any distance apart.
    pub fn plan(
        self,
        caps: &Capabilities,
        x: &Layout,
        positions: Positions<&Layout>,
        out: RopeOut<&Layout>,
    ) -> Result<Launch> {
        let from = Spread::of("x", x)?;
        let (tokens, heads, head_dim) = (x.shape()[0], x.shape()[1], x.shape()[2]);
        let to = match out {
            RopeOut::InPlace => from,
            RopeOut::Into(y) => {
                y.require_shape("y", x.shape())?;
                Spread::of("y", y)?
            }
        };
        self.check_head(head_dim)?;
        let start = match positions {
            Positions::From(start) => self.check_positions(start, tokens)?,
            Positions::Tensor(ids) => {
                ids.require_dtype("positions", DType::U32)?;
                ids.require_shape("positions", &[tokens])?;
                if !ids.is_contiguous() {
                    return Err(Error::argument(
                        "positions",
                        format!("{ids:?}"),
                        "contiguous",
                    ));
                }
                ids.offset() as u32
            }
        };
        let vec = self.vector(head_dim, [from, to]);
        let rotating = self.dims / (2 * vec);
        let slots = match out {
            RopeOut::InPlace => rotating,
            RopeOut::Into(_) => head_dim / (2 * vec),
        };
        let params = Params {
            total: (tokens * heads * slots) as u32,
            slots: slots as u32,
            rotating: rotating as u32,
            heads: heads as u32,
            half: (self.dims / 2) as u32,
            start,
            last_position: (self.positions - 1) as u32,
            x_offset: from.offset,
            x_token: from.outer,
            x_head: from.inner,
            y_offset: to.offset,
            y_token: to.outer,
            y_head: to.inner,
        };
        let y = match out {
            RopeOut::InPlace => x.dtype(),
            RopeOut::Into(y) => y.dtype(),
        };
        let recipe = Recipe::new("rope/rope")
            .with("X", x.dtype())
            .with("Y", y)
            .with("LAYOUT", self.layout.name())
            .with("PLACE", out.name())
            .with("POSITIONS", positions_name(&positions))
            .with("VEC", vec as u32)
            .with("WG", WORKGROUP as u32);
        let grid = linear_grid(caps, (params.total as usize).div_ceil(WORKGROUP));
        Launch::new(caps, recipe, grid, &params)
    }

    fn check_head(self, head_dim: usize) -> Result<()> {
        let valid = self.dims >= 2 && self.dims.is_multiple_of(2) && self.positions > 0;
        if !valid {
            let allowed = "an even number of channels, at least one position";
            return Err(Error::argument("rope", format!("{self:?}"), allowed));
        }
        if head_dim.is_multiple_of(2) && self.dims <= head_dim {
            return Ok(());
        }
        let allowed = format!("even, at least the {} channels that rotate", self.dims);
        Err(Error::argument("head_dim", head_dim, allowed))
    }

    fn check_positions(self, start: usize, tokens: usize) -> Result<u32> {
        if start
            .checked_add(tokens)
            .is_some_and(|end| end <= self.positions)
        {
            return Ok(start as u32);
        }
        Err(Error::argument(
            "position",
            format!("{tokens} tokens from position {start}"),
            format!(
                "positions below {}, the length of the RoPE table",
                self.positions
            ),
        ))
    }

    /// Channels that a half of a slot holds: 4 where every run of them is aligned.
    fn vector<const N: usize>(self, head_dim: usize, tensors: [Spread; N]) -> usize {
        let aligned = head_dim.is_multiple_of(8)
            && self.dims.is_multiple_of(8)
            && tensors.iter().all(Spread::multiple_of_four);
        if aligned { 4 } else { 1 }
    }
}

fn positions_name<T>(positions: &Positions<T>) -> &'static str {
    match positions {
        Positions::From(_) => "start",
        Positions::Tensor(_) => "tensor",
    }
}

/// The operands of [`FusedQkv`]: tensors to run it, layouts to plan it. Element types are f32, f16 or bf16, each
/// tensor its own; the caches are two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedQkvArgs<T> {
    /// [tokens, (heads + 2 kv_heads) * head_dim]: the query heads, the key heads, the value heads.
    pub qkv: T,
    /// [tokens, heads, head_dim], or in place.
    pub q_out: RopeOut<T>,
    /// [kv_heads, max_len, head_dim], with any distance between heads and positions.
    pub k_cache: T,
    /// As `k_cache`.
    pub v_cache: T,
}

/// After a fused query-key-value product: rotates the queries, rotates the keys into their cache and copies the values
/// into theirs, in one dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedQkv {
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many value heads.
    pub kv_heads: usize,
    /// Position of the first token, in the table and in the caches.
    pub start: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QkvParams {
    total: u32,
    slots: u32,
    rotating: u32,
    half: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    start: u32,
    x_offset: u32,
    x_token: u32,
    q_offset: u32,
    q_token: u32,
    q_head: u32,
    k_offset: u32,
    k_head: u32,
    k_position: u32,
    v_offset: u32,
    v_head: u32,
    v_position: u32,
    columns: u32,
}

impl FusedQkv {
    /// Plans the dispatch.
    pub fn plan(
        self,
        caps: &Capabilities,
        rope: Rope,
        args: &FusedQkvArgs<&Layout>,
    ) -> Result<Launch> {
        self.plan_in(caps, rope, args, None)
    }

    /// Plans the dispatch into the pages of a cache that drops what `layout`, made by [`SparseLayout::resident`], no
    /// longer meets: the caches are [1, pages * block, head_dim]. To be launched by [`FusedQkvArgs::launch_pages`].
    pub fn plan_pages(
        self,
        caps: &Capabilities,
        rope: Rope,
        args: &FusedQkvArgs<&Layout>,
        layout: &SparseLayout,
    ) -> Result<Launch> {
        self.plan_in(caps, rope, args, Some(layout))
    }

    fn plan_in(
        self,
        caps: &Capabilities,
        rope: Rope,
        args: &FusedQkvArgs<&Layout>,
        layout: Option<&SparseLayout>,
    ) -> Result<Launch> {
        let Self {
            heads,
            kv_heads,
            start,
        } = self;
        for (name, count) in [("heads", heads), ("kv_heads", kv_heads)] {
            if count == 0 || count > u16::MAX as usize {
                return Err(Error::argument(name, count, "1 to 65535"));
            }
        }
        let (k, v) = (
            Spread::of("k_cache", args.k_cache)?,
            Spread::of("v_cache", args.v_cache)?,
        );
        let (rows, head_dim) = (args.k_cache.shape()[1], args.k_cache.shape()[2]);
        let (cache, max_len) = match layout.map(|l| (l, l.pages())) {
            None => ([kv_heads, rows, head_dim], rows),
            Some((layout, Some(pages))) if pages.kv_heads() == kv_heads => {
                let rows = pages.total_pages() * layout.block();
                ([1, rows, head_dim], layout.keys())
            }
            Some((layout, _)) => {
                let allowed = format!("one with the pages of {kv_heads} key heads");
                return Err(Error::argument("layout", format!("{layout:?}"), allowed));
            }
        };
        args.k_cache.require_shape("k_cache", &cache)?;
        args.v_cache.require_shape("v_cache", &cache)?;
        rope.check_head(head_dim)?;
        let all_heads = heads + 2 * kv_heads;
        let &[tokens, width] = args.qkv.shape() else {
            let was = format!("{:?}", args.qkv);
            return Err(Error::argument("qkv", was, "two dimensions"));
        };
        if all_heads.checked_mul(head_dim) != Some(width) {
            let allowed = format!("{all_heads} heads of {head_dim} channels in a row");
            return Err(Error::argument("qkv", format!("{:?}", args.qkv), allowed));
        }
        let split = args.qkv.split_heads(all_heads)?;
        let x = Spread::of("qkv", &split)?;
        let q = match args.q_out {
            RopeOut::InPlace => x,
            RopeOut::Into(q) => {
                q.require_shape("q_out", &[tokens, heads, head_dim])?;
                Spread::of("q_out", q)?
            }
        };
        rope.check_positions(start, tokens)?;
        if start + tokens > max_len {
            return Err(Error::argument(
                "position",
                format!("{tokens} tokens from position {start}"),
                format!("positions below {max_len}, the length of the key-value cache"),
            ));
        }
        let vec = rope.vector(head_dim, [x, q, k, v]);
        let slots = head_dim / (2 * vec);
        let params = QkvParams {
            total: (tokens * all_heads * slots) as u32,
            slots: slots as u32,
            rotating: (rope.dims / (2 * vec)) as u32,
            half: (rope.dims / 2) as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            start: start as u32,
            x_offset: x.offset,
            x_token: x.outer,
            q_offset: q.offset,
            q_token: q.outer,
            q_head: q.inner,
            k_offset: k.offset,
            k_head: k.outer,
            k_position: k.inner,
            v_offset: v.offset,
            v_head: v.outer,
            v_position: v.inner,
            columns: layout.map_or(0, |l| l.columns() as u32),
        };
        let q_type: Constant = match args.q_out {
            RopeOut::InPlace => Constant::Name("none"),
            RopeOut::Into(q) => q.dtype().into(),
        };
        let recipe = Recipe::new("rope/qkv")
            .with("QKV", args.qkv.dtype())
            .with("Q", q_type)
            .with("K", args.k_cache.dtype())
            .with("VALUE", args.v_cache.dtype())
            .with("LAYOUT", rope.layout.name())
            .with("PLACE", args.q_out.name())
            .with("PAGE", layout.map_or(0, |l| l.block() as u32))
            .with("VEC", vec as u32)
            .with("WG", WORKGROUP as u32);
        let grid = linear_grid(caps, (params.total as usize).div_ceil(WORKGROUP));
        Launch::new(caps, recipe, grid, &params)
    }

    /// Records the dispatch.
    pub fn run(
        self,
        pass: &mut Pass<'_>,
        table: &RopeTable,
        args: FusedQkvArgs<&Tensor>,
    ) -> Result<()> {
        let launch = self.plan(pass.capabilities(), table.rope, &args.layouts())?;
        args.launch(pass, table, &launch)
    }
}

impl<'a> FusedQkvArgs<&'a Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> FusedQkvArgs<&'a Layout> {
        FusedQkvArgs {
            qkv: self.qkv.layout(),
            q_out: self.q_out.map(Tensor::layout),
            k_cache: self.k_cache.layout(),
            v_cache: self.v_cache.layout(),
        }
    }

    /// Records a dispatch planned for tensors of these layouts.
    pub fn launch(&self, pass: &mut Pass<'_>, table: &RopeTable, launch: &Launch) -> Result<()> {
        self.launch_with(pass, table, launch, None)
    }

    /// Records a dispatch of [`FusedQkv::plan_pages`].
    pub fn launch_pages(
        &self,
        pass: &mut Pass<'_>,
        table: &RopeTable,
        launch: &Launch,
        layout: &SparseLayout,
    ) -> Result<()> {
        let pages = layout.page_table(pass.context())?;
        self.launch_with(pass, table, launch, Some(&pages))
    }

    fn launch_with(
        &self,
        pass: &mut Pass<'_>,
        table: &RopeTable,
        launch: &Launch,
        pages: Option<&Tensor>,
    ) -> Result<()> {
        let mut tensors = arrayvec::ArrayVec::<&Tensor, 6>::from_iter([self.qkv, &table.tensor]);
        if let RopeOut::Into(q) = self.q_out {
            tensors.push(q);
        }
        tensors.extend([self.k_cache, self.v_cache]);
        tensors.extend(pages);
        pass.launch(launch, &tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dims: usize, theta: f64, scaling: RopeScaling) -> RopeConfig {
        RopeConfig {
            theta,
            dims,
            layout: RopeLayout::HalfSplit,
            scaling,
        }
    }

    fn near(config: RopeConfig, expected: &[(usize, f64)]) {
        let found = config.frequencies(config.dims).unwrap();
        assert_eq!(found.len(), config.dims / 2);
        for &(i, f) in expected {
            assert!(
                (found[i] / f - 1.0).abs() < 1e-12,
                "{i}: {} for {f}",
                found[i]
            );
        }
    }

    const YARN: RopeScaling = RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 2048,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    };
    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };

    /// Values of transformers' formulas, computed apart from this code.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let plain = [(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.001)];
        near(config(8, 1e4, RopeScaling::None), &plain);
        near(
            config(8, 1e4, RopeScaling::Linear { factor: 4.0 }),
            &plain.map(|(i, f)| (i, f / 4.0)),
        );
        let ntk = [
            (0, 1.0),
            (1, 0.06299605249474366),
            (2, 0.003968502629920499),
            (3, 0.00025),
        ];
        near(config(8, 1e4, RopeScaling::Ntk { factor: 4.0 }), &ntk);
        let yarn = [
            (0, 1.0),
            (10, 0.049745578766838564),
            (11, 0.03487105701428661),
            (15, 0.00794983930712751),
            (20, 0.0009730085108210396),
            (24, 0.00025),
            (31, 3.33380358040831e-05),
        ];
        near(config(64, 1e4, YARN), &yarn);
        assert!((config(64, 1e4, YARN).attention_factor() - 1.138629436111989).abs() < 1e-15);
        let llama3 = [
            (0, 1.0),
            (20, 0.016560440080994446),
            (28, 0.003211445994752591),
            (29, 0.002166570763503359),
            (30, 0.0013718935677611381),
            (32, 0.0005248461609929547),
            (35, 9.556212353964683e-05),
            (36, 7.78465527393245e-05),
            (63, 3.068925988914511e-07),
        ];
        near(config(128, 5e5, LLAMA3), &llama3);
    }

    #[test]
    fn bad_configs_are_refused_by_name() {
        let yarn = |factor, beta_fast, context, attention_factor| RopeScaling::Yarn {
            factor,
            original_max_positions: context,
            beta_fast,
            beta_slow: 1.0,
            attention_factor,
        };
        for (config, name) in [
            (config(7, 1e4, RopeScaling::None), "rope dims: 7"),
            (config(0, 1e4, RopeScaling::None), "rope dims: 0"),
            (config(66, 1e4, RopeScaling::None), "rope dims: 66"),
            (
                config(2, 1e4, RopeScaling::Ntk { factor: 2.0 }),
                "rope dims: 2",
            ),
            (config(8, f64::NAN, RopeScaling::None), "rope theta"),
            (config(8, 1.0, YARN), "rope theta"),
            (
                config(8, 1e4, RopeScaling::Linear { factor: 0.5 }),
                "rope factor",
            ),
            (
                config(8, 1e4, yarn(f64::INFINITY, 32.0, 64, None)),
                "rope factor",
            ),
            (
                config(8, 1e4, yarn(2.0, 1.0, 64, None)),
                "rope frequency range",
            ),
            (
                config(8, 1e4, yarn(2.0, 32.0, 0, None)),
                "rope original_max_positions",
            ),
            (
                config(8, 1e4, yarn(2.0, 32.0, 64, Some(0.0))),
                "rope attention_factor",
            ),
        ] {
            let error = config.frequencies(64).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    fn layout(dtype: DType, shape: &[usize]) -> Layout {
        Layout::contiguous(dtype, shape).unwrap()
    }

    #[test]
    fn bad_arguments_are_named() {
        let caps = Capabilities::webgpu_default();
        let rope = Rope {
            dims: 8,
            layout: RopeLayout::HalfSplit,
            positions: 10,
        };
        let x = layout(DType::F32, &[3, 2, 8]);
        let (flat, narrow) = (layout(DType::F32, &[3, 16]), layout(DType::F32, &[3, 2, 6]));
        let (ids, short) = (layout(DType::U32, &[3]), layout(DType::U32, &[2]));
        let turned = layout(DType::F32, &[3, 8, 2]).transpose(1, 2).unwrap();
        let gaps = layout(DType::U32, &[3, 2]).narrow(1, 0..1).unwrap();
        let at = Positions::From;
        assert!(rope.plan(&caps, &x, at(7), RopeOut::InPlace).is_ok());
        for (x, positions, out, name) in [
            (&flat, at(0), RopeOut::InPlace, "x: "),
            (&turned, at(0), RopeOut::InPlace, "x: "),
            (&ids, at(0), RopeOut::InPlace, "x: u32"),
            (&narrow, at(0), RopeOut::InPlace, "head_dim: 6"),
            (
                &x,
                at(8),
                RopeOut::InPlace,
                "position: 3 tokens from position 8",
            ),
            (&x, at(usize::MAX), RopeOut::InPlace, "position: "),
            (&x, at(0), RopeOut::Into(&narrow), "y: shape"),
            (
                &x,
                Positions::Tensor(&short),
                RopeOut::InPlace,
                "positions: shape",
            ),
            (
                &x,
                Positions::Tensor(&x),
                RopeOut::InPlace,
                "positions: f32",
            ),
            (
                &x,
                Positions::Tensor(&gaps),
                RopeOut::InPlace,
                "positions: ",
            ),
        ] {
            let error = rope.plan(&caps, x, positions, out).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn bad_fused_arguments_are_named() {
        let caps = Capabilities::webgpu_default();
        let rope = Rope {
            dims: 8,
            layout: RopeLayout::HalfSplit,
            positions: 100,
        };
        let (qkv, q) = (layout(DType::F32, &[3, 64]), layout(DType::F32, &[3, 4, 8]));
        let cache = layout(DType::F16, &[2, 20, 8]);
        let (short, long) = (
            layout(DType::F16, &[2, 19, 8]),
            layout(DType::F16, &[2, 200, 8]),
        );
        let good = FusedQkvArgs {
            qkv: &qkv,
            q_out: RopeOut::Into(&q),
            k_cache: &cache,
            v_cache: &cache,
        };
        let op = FusedQkv {
            heads: 4,
            kv_heads: 2,
            start: 17,
        };
        assert!(op.plan(&caps, rope, &good).is_ok());
        let longer = FusedQkvArgs {
            k_cache: &long,
            v_cache: &long,
            ..good
        };
        for (op, args, name) in [
            (FusedQkv { heads: 0, ..op }, good, "heads: 0"),
            (FusedQkv { heads: 5, ..op }, good, "qkv: "),
            (FusedQkv { kv_heads: 1, ..op }, good, "k_cache: shape"),
            (
                FusedQkv { start: 18, ..op },
                good,
                "position: 3 tokens from position 18; allowed: positions below 20",
            ),
            (
                FusedQkv { start: 98, ..op },
                longer,
                "position: 3 tokens from position 98; allowed: positions below 100",
            ),
            (
                op,
                FusedQkvArgs {
                    v_cache: &short,
                    ..good
                },
                "v_cache: shape",
            ),
            (op, FusedQkvArgs { qkv: &q, ..good }, "qkv: "),
            (
                op,
                FusedQkvArgs {
                    q_out: RopeOut::Into(&qkv),
                    ..good
                },
                "q_out: shape",
            ),
        ] {
            let error = op.plan(&caps, rope, &args).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
