//! Grouped-query attention without the matrix of scores: prefill over tiles, decode over splits of the keys.
//!
//! out = softmax(scale q k' + bias, masked) v for each head, with the scores kept on chip (FlashAttention-2, arXiv
//! 2307.08691). Few queries take the decode kernel, which reads K and V once for all query heads that share them
//! and spreads the keys over the device (flash-decoding), many the prefill kernel, which tiles both ways.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::capabilities::{Capabilities, DeviceClass, ReduceTier};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Which keys a query sees, before a mask tensor hides more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All.
    Full,
    /// Those not after it, the last query being the last key's: query i sees keys j <= i + kv_len - q_len.
    Causal,
}

impl Mask {
    /// The name in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Causal => "causal",
        }
    }
}

/// Most channels of a head, of q and k as of v.
pub const MAX_HEAD_DIM: usize = 256;

/// Tile sizes of the prefill kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefillTuning {
    /// Invocations across the keys of a tile, four keys each: a power of two, at least 4.
    pub key_threads: u32,
    /// Invocations across its queries: a power of two.
    pub query_threads: u32,
    /// Queries of one invocation: 4 or 8.
    pub rows: u32,
    /// Channels of q and k that are staged at a time, in groups of four: 1 to 8.
    pub depth: u32,
    /// Keys whose values are staged at a time: a power of two, 4 to the tile's keys.
    pub value_keys: u32,
}

/// Sizes of the decode kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeTuning {
    /// Invocations of a workgroup: a power of two.
    pub workgroup: u32,
    /// Invocations that share a key, at least: a power of two, at most 32. More where registers would not suffice.
    pub lanes: u32,
    /// Rows (queries of heads that share keys) of one workgroup, at most: a power of two, at most 8.
    pub rows: u32,
    /// Workgroups that the keys are split for.
    pub workgroups: u32,
    /// Keys of a split, at least.
    pub split_keys: u32,
}

/// All sizes that do not change the result; [`Tuning::new`] has a device's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Queries that still go to the decode kernel.
    pub decode_queries: usize,
    /// Sizes of the prefill kernel.
    pub prefill: PrefillTuning,
    /// Sizes of the decode kernel.
    pub decode: DecodeTuning,
}

impl PrefillTuning {
    /// Bytes of workgroup memory with values of `v_dim` channels.
    pub fn workgroup_bytes(&self, v_dim: usize) -> u64 {
        let [tx, ty, rows, depth, value_keys] = [
            self.key_threads,
            self.query_threads,
            self.rows,
            self.depth,
            self.value_keys,
        ]
        .map(u64::from);
        let queries = ty * rows;
        let staged = depth * (queries + 4 * tx);
        let stage = staged.max(value_keys * (v_dim as u64).div_ceil(4));
        16 * (stage + queries * tx + tx * ty * rows / 4)
    }

    fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        let large = caps.workgroup_bytes >= 40 << 10 && caps.class != DeviceClass::Software;
        let (key_threads, query_threads, rows, depth) = match (large, v_dim <= 128) {
            // 64 queries by 32 keys: 16 KiB with everything.
            (false, true) => (8, 16, 4, 4),
            // Half as many queries, so that an invocation holds no more of the output.
            (false, false) => (16, 8, 4, 4),
            (true, true) => (16, 8, 8, 8),
            (true, false) => (16, 16, 4, 8),
        };
        let mut tuning = Self {
            key_threads,
            query_threads,
            rows,
            depth: depth_for(head_dim, depth),
            value_keys: 4,
        };
        let budget = u64::from(caps.workgroup_bytes).min(if large { 40 << 10 } else { 16 << 10 });
        tuning.grow_values(budget, v_dim);
        tuning
    }

    /// As many keys' values at a time as fit.
    fn grow_values(&mut self, budget: u64, v_dim: usize) {
        while self.value_keys < 4 * self.key_threads {
            self.value_keys *= 2;
            if self.workgroup_bytes(v_dim) > budget {
                self.value_keys /= 2;
                return;
            }
        }
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Vec<Self> {
        let mut found = vec![Self::new(caps, head_dim, v_dim)];
        for (key_threads, query_threads) in [
            (8, 8),
            (8, 16),
            (8, 32),
            (16, 4),
            (16, 8),
            (16, 16),
            (32, 8),
        ] {
            for rows in [4, 8] {
                for depth in [2, 4, 8] {
                    let mut tuning = Self {
                        key_threads,
                        query_threads,
                        rows,
                        depth: depth_for(head_dim, depth),
                        value_keys: 4,
                    };
                    tuning.grow_values(caps.workgroup_bytes.into(), v_dim);
                    if !found.contains(&tuning) && tuning.check(caps, v_dim).is_ok() {
                        found.push(tuning);
                    }
                }
            }
        }
        found
    }

    fn check(&self, caps: &Capabilities, v_dim: usize) -> Result<()> {
        let powers = [self.key_threads, self.query_threads, self.value_keys];
        let sound = powers.iter().all(|n| n.is_power_of_two() && *n <= 1024)
            && self.key_threads >= 4
            && [4, 8].contains(&self.rows)
            && self.query_threads * self.rows >= 16
            && (1..=8).contains(&self.depth)
            && (4..=4 * self.key_threads).contains(&self.value_keys)
            && self.key_threads * self.query_threads <= caps.invocations
            && self.workgroup_bytes(v_dim) <= caps.workgroup_bytes.into();
        if sound {
            return Ok(());
        }
        let allowed = format!(
            "sizes as documented, {} invocations and {} bytes at most",
            caps.invocations, caps.workgroup_bytes
        );
        Err(Error::argument(
            "tuning.prefill",
            format!("{self:?}"),
            allowed,
        ))
    }
}

/// A staging depth of at most `most` groups of four channels: one without waste where there is one.
fn depth_for(head_dim: usize, most: u32) -> u32 {
    let groups = head_dim.div_ceil(4) as u32;
    (most / 2..=most)
        .rev()
        .find(|&d| d > 0 && groups.is_multiple_of(d))
        .unwrap_or(most.min(groups))
}

impl DecodeTuning {
    fn new(caps: &Capabilities) -> Self {
        Self {
            workgroup: 128,
            lanes: 8,
            rows: 8,
            // A few workgroups for each processor of the largest cards; a software driver gains nothing by more
            // than it has threads.
            workgroups: if caps.class == DeviceClass::Software {
                8
            } else {
                512
            },
            split_keys: 128,
        }
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities) -> Vec<Self> {
        let mut found = vec![Self::new(caps)];
        for workgroup in [64, 128, 256] {
            for lanes in [8, 16, 32] {
                for rows in [4, 8] {
                    for workgroups in [256, 512, 1024, 2048] {
                        let tuning = Self {
                            workgroup,
                            lanes,
                            rows,
                            workgroups,
                            split_keys: 128,
                        };
                        if !found.contains(&tuning) && tuning.check(caps).is_ok() {
                            found.push(tuning);
                        }
                    }
                }
            }
        }
        found
    }

    fn check(&self, caps: &Capabilities) -> Result<()> {
        let sound = [self.workgroup, self.lanes, self.rows]
            .iter()
            .all(|n| n.is_power_of_two())
            && (32..=caps.invocations.min(256)).contains(&self.workgroup)
            && self.lanes <= 32
            && self.rows <= 8
            && self.workgroups > 0
            && self.split_keys > 0;
        if sound {
            return Ok(());
        }
        Err(Error::argument(
            "tuning.decode",
            format!("{self:?}"),
            format!(
                "sizes as documented, {} invocations at most",
                caps.invocations.min(256)
            ),
        ))
    }
}

impl Tuning {
    /// The defaults for a device.
    pub fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        Self {
            decode_queries: 16,
            prefill: PrefillTuning::new(caps, head_dim, v_dim),
            decode: DecodeTuning::new(caps),
        }
    }
}

/// Attention: out = softmax(scale q k' + bias, masked) v, head by head.
///
/// - `q` [batch, heads, q_len, head_dim], `k` [batch, kv_heads, kv_len, head_dim], `v` [batch, kv_heads, kv_len,
///   v_dim], `out` [batch, heads, q_len, v_dim]: f32, f16 or bf16 each, any strides with adjacent elements in the
///   last dimension (views of a fused projection, a narrowed cache, [batch, length, heads, dim] transposed); heads a
///   multiple of kv_heads, of which consecutive ones share a key head; head_dim and v_dim at most [`MAX_HEAD_DIM`].
/// - `bias`, added to the scaled scores: f32, f16 or bf16, broadcastable to [batch, heads, q_len, kv_len] (missing
///   leading dimensions and dimensions of one repeat). Minus infinity hides a key.
/// - `mask`, of the same form: i8 bytes, zero hides a key (safetensors' BOOL as it is).
/// - `lse` [batch, heads, q_len], f32, contiguous: the natural logarithm of each row's sum of exponentials.
///
/// A row that sees no key gives zeros, and minus infinity for `lse`. All arithmetic is in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    mask: Mask,
    scale: Option<f32>,
    tuning: Option<Tuning>,
}

/// The layouts of one call, to plan it without a GPU; see [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayouts<'a> {
    /// Queries.
    pub q: &'a Layout,
    /// Keys.
    pub k: &'a Layout,
    /// Values.
    pub v: &'a Layout,
    /// Added to the scaled scores.
    pub bias: Option<&'a Layout>,
    /// Zero hides a key.
    pub mask: Option<&'a Layout>,
    /// The result.
    pub out: &'a Layout,
    /// Logarithms of the rows' sums.
    pub lse: Option<&'a Layout>,
}

/// The tensors of one call; see [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// Added to the scaled scores.
    pub bias: Option<&'a Tensor>,
    /// Zero hides a key.
    pub mask: Option<&'a Tensor>,
    /// The result.
    pub out: &'a Tensor,
    /// Logarithms of the rows' sums.
    pub lse: Option<&'a Tensor>,
}

impl<'a> AttentionArgs<'a> {
    /// Without bias, mask and logarithms.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, out: &'a Tensor) -> Self {
        Self {
            q,
            k,
            v,
            bias: None,
            mask: None,
            out,
            lse: None,
        }
    }

    /// Their layouts, to plan with.
    pub fn layouts(&self) -> AttentionLayouts<'a> {
        AttentionLayouts {
            q: self.q.layout(),
            k: self.k.layout(),
            v: self.v.layout(),
            bias: self.bias.map(Tensor::layout),
            mask: self.mask.map(Tensor::layout),
            out: self.out.layout(),
            lse: self.lse.map(Tensor::layout),
        }
    }
}

/// The dispatches of one call. The recipes do not depend on the number of keys: a growing cache compiles nothing.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    main: Launch,
    combine: Option<Launch>,
    /// Elements of the intermediate result; zero for prefill.
    partial: usize,
}

impl AttentionPlan {
    /// The dispatches in order: one, or two where keys are split.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        std::iter::once(&self.main).chain(&self.combine)
    }

    /// Records the dispatches over tensors of the layouts that were planned for: the hot loop's form, for models
    /// that plan once a step and launch for every layer.
    pub fn launch(&self, pass: &mut Pass<'_>, args: AttentionArgs<'_>) -> Result<()> {
        let partial = match self.partial {
            0 => None,
            n => Some(pass.scratch(SCRATCH_SLOT, DType::F32, [n])?),
        };
        let mut tensors =
            arrayvec::ArrayVec::<&Tensor, 8>::from_iter([args.q, args.k, args.v, args.out]);
        tensors.extend(args.bias);
        tensors.extend(args.mask);
        tensors.extend(args.lse);
        tensors.extend(&partial);
        pass.launch(&self.main, &tensors)?;
        if let (Some(combine), Some(partial)) = (&self.combine, &partial) {
            tensors.clear();
            tensors.extend([partial, args.out]);
            tensors.extend(args.lse);
            pass.launch(combine, &tensors)?;
        }
        Ok(())
    }
}

impl fmt::Display for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.main.recipe)?;
        match &self.combine {
            Some(combine) => write!(f, " + {}", combine.recipe),
            None => Ok(()),
        }
    }
}

/// Mirrors the shaders' `Params`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q: Strides,
    k: Strides,
    v: Strides,
    out: Strides,
    bias: Strides,
    mask: Strides,
    key_strides: u32,
    lse_offset: u32,
    scale: f32,
    group: u32,
    q_len: u32,
    kv_len: u32,
    split_keys: u32,
    splits: u32,
}

/// Offset and strides of batch, head and row.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Strides {
    offset: u32,
    batch: u32,
    head: u32,
    row: u32,
}

/// The slot of scratch memory for what one operator's dispatches hand on to its next: never read after it.
const SCRATCH_SLOT: usize = 0;

impl Attention {
    /// Attention with this mask, scaled by 1 / sqrt(head_dim).
    pub fn new(mask: Mask) -> Self {
        Self {
            mask,
            scale: None,
            tuning: None,
        }
    }

    /// With the dot products multiplied by `scale`, which must be finite.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// With sizes of one's own.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Plans the dispatches.
    pub fn plan(
        &self,
        caps: &Capabilities,
        layouts: AttentionLayouts<'_>,
    ) -> Result<AttentionPlan> {
        let problem = Problem::new(&layouts)?;
        let scale = match self.scale {
            Some(scale) => f64::from(scale),
            None => 1.0 / (problem.head_dim as f64).sqrt(),
        };
        let scale = (scale * std::f64::consts::LOG2_E) as f32;
        if !scale.is_finite() {
            return Err(Error::argument(
                "scale",
                format!("{:?}", self.scale),
                "a finite number",
            ));
        }
        let tuning = self
            .tuning
            .unwrap_or_else(|| Tuning::new(caps, problem.head_dim, problem.v_dim));
        if problem.q_len <= tuning.decode_queries {
            problem.decode(caps, self.mask, scale, &tuning.decode)
        } else {
            problem.prefill(caps, self.mask, scale, &tuning.prefill)
        }
    }

    /// Records the dispatches.
    pub fn run(&self, pass: &mut Pass<'_>, args: AttentionArgs<'_>) -> Result<()> {
        self.plan(pass.capabilities(), args.layouts())?
            .launch(pass, args)
    }

    /// Attention over `q`, `k` and `v` as a new tensor of q's type.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = match (q.shape(), v.shape()) {
            (&[batch, heads, q_len, _], &[.., v_dim]) => [batch, heads, q_len, v_dim],
            // Planning says what is wrong.
            _ => [1; 4],
        };
        let out = Tensor::empty(q.context(), q.dtype(), shape)?;
        let args = AttentionArgs::new(q, k, v, &out);
        q.context().record(|pass| self.run(pass, args))?;
        Ok(out)
    }
}

/// A checked call.
struct Problem<'a> {
    layouts: &'a AttentionLayouts<'a>,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
    v_dim: usize,
    bias: Option<Broadcast>,
    mask: Option<Broadcast>,
}

/// A bias or mask by its strides.
struct Broadcast {
    strides: Strides,
    /// Neighbouring keys have elements of their own.
    by_key: bool,
}

impl<'a> Problem<'a> {
    fn new(layouts: &'a AttentionLayouts<'a>) -> Result<Self> {
        let &AttentionLayouts { q, k, v, out, .. } = layouts;
        let [batch, heads, q_len, head_dim] = four("q", q)?;
        let [_, kv_heads, kv_len, _] = four("k", k)?;
        let [.., v_dim] = four("v", v)?;
        four("out", out)?;
        for (name, dim) in [("q", head_dim), ("v", v_dim)] {
            if dim > MAX_HEAD_DIM {
                return Err(Error::argument(
                    name,
                    format!("{dim} channels a head"),
                    format!("at most {MAX_HEAD_DIM}"),
                ));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::argument(
                "k",
                format!("{kv_heads} heads"),
                format!("a divisor of q's {heads} heads"),
            ));
        }
        // Positions are signed in the shaders.
        for (name, len) in [("q", q_len), ("k", kv_len)] {
            if len > 1 << 30 {
                return Err(Error::argument(
                    name,
                    format!("length {len}"),
                    "at most 2^30",
                ));
            }
        }
        k.require_shape("k", &[batch, kv_heads, kv_len, head_dim])?;
        v.require_shape("v", &[batch, kv_heads, kv_len, v_dim])?;
        out.require_shape("out", &[batch, heads, q_len, v_dim])?;
        if let Some(lse) = layouts.lse {
            lse.require_dtype("lse", DType::F32)?;
            lse.require_shape("lse", &[batch, heads, q_len])?;
            if !lse.is_contiguous() {
                return Err(Error::argument("lse", format!("{lse:?}"), "contiguous"));
            }
        }
        let full = [batch, heads, q_len, kv_len];
        let bias = match layouts.bias {
            Some(bias) => {
                bias.require_float("bias")?;
                Some(broadcast("bias", bias, full)?)
            }
            None => None,
        };
        let mask = match layouts.mask {
            Some(mask) => {
                mask.require_dtype("mask", DType::I8)?;
                Some(broadcast("mask", mask, full)?)
            }
            None => None,
        };
        Ok(Self {
            layouts,
            batch,
            heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim,
            v_dim,
            bias,
            mask,
        })
    }

    fn params(&self, scale: f32, split_keys: usize, splits: usize) -> Params {
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let [q, k, v, out] = [q, k, v, out].map(|l| strides(l));
        let of = |b: &Option<Broadcast>| b.as_ref().map_or(Strides::default(), |b| b.strides);
        let by_key = |b: &Option<Broadcast>| b.as_ref().is_some_and(|b| b.by_key) as u32;
        Params {
            q,
            k,
            v,
            out,
            bias: of(&self.bias),
            mask: of(&self.mask),
            key_strides: by_key(&self.bias) | by_key(&self.mask) << 1,
            lse_offset: self.layouts.lse.map_or(0, |l| l.offset() as u32),
            scale,
            group: (self.heads / self.kv_heads) as u32,
            q_len: self.q_len as u32,
            kv_len: self.kv_len as u32,
            split_keys: split_keys as u32,
            splits: splits as u32,
        }
    }

    fn recipe(&self, shader: &'static str, mask: Mask) -> Recipe {
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        Recipe::new(shader)
            .with("Q", q.dtype())
            .with("K", k.dtype())
            .with("V", v.dtype())
            .with("O", out.dtype())
            .with("D", self.head_dim as u32)
            .with("DV", self.v_dim as u32)
            .with("CAUSAL", mask.name())
            .with(
                "BIAS",
                self.layouts.bias.map_or("none", |b| b.dtype().name()),
            )
            .with("MASK", u32::from(self.mask.is_some()))
            .with("LSE", u32::from(self.layouts.lse.is_some()))
    }

    fn prefill(
        &self,
        caps: &Capabilities,
        mask: Mask,
        scale: f32,
        tuning: &PrefillTuning,
    ) -> Result<AttentionPlan> {
        tuning.check(caps, self.v_dim)?;
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let wide = [q, k, v, out].iter().all(|l| multiple_of(l, 4));
        let recipe = self
            .recipe("attention/prefill", mask)
            .with("VEC", if wide { 4 } else { 1 })
            .with("TX", tuning.key_threads)
            .with("TY", tuning.query_threads)
            .with("RQ", tuning.rows)
            .with("DC", tuning.depth)
            .with("BV", tuning.value_keys);
        let queries = (tuning.query_threads * tuning.rows) as usize;
        let grid = [self.q_len.div_ceil(queries), self.heads, self.batch];
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &self.params(scale, 0, 1))?,
            combine: None,
            partial: 0,
        })
    }

    fn decode(
        &self,
        caps: &Capabilities,
        mask: Mask,
        scale: f32,
        tuning: &DecodeTuning,
    ) -> Result<AttentionPlan> {
        tuning.check(caps)?;
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let wide = multiple_of(q, 4) && multiple_of(out, 4);
        let halves = k.dtype() != DType::F32 || v.dtype() != DType::F32;
        let kv_vec = [8, 4, 1]
            .into_iter()
            // Eight f32 are two accesses: no gain over four.
            .filter(|&n| n != 8 || halves)
            .find(|&n| multiple_of(k, n) && multiple_of(v, n))
            .unwrap_or(1);
        let rows = self.heads / self.kv_heads * self.q_len;
        let columns = self.head_dim.max(self.v_dim).div_ceil(4.max(kv_vec)) as u32;
        let team = Team::new(caps, tuning, rows, columns, if kv_vec == 8 { 2 } else { 1 });
        let row_tiles = rows.div_ceil(team.rows as usize);

        let step = (tuning.workgroup / team.lanes * 4) as usize;
        let alike = self.batch * self.kv_heads * row_tiles;
        let most = (tuning.workgroups as usize / alike).max(1);
        let split_keys = self
            .kv_len
            .div_ceil(most)
            .max(tuning.split_keys as usize)
            .next_multiple_of(step);
        let splits = self.kv_len.div_ceil(split_keys);
        let params = self.params(scale, split_keys, splits);

        let vec = if wide { 4 } else { 1 };
        let recipe = self
            .recipe("attention/decode", mask)
            .with("VEC", vec)
            .with("KVEC", kv_vec as u32)
            .with("R", team.rows)
            .with("L", team.lanes)
            .with("WG", tuning.workgroup)
            .with("REDUCE", team.reduce);
        let grid = [splits, self.kv_heads * row_tiles, self.batch];
        let groups = self.v_dim.div_ceil(4) as u32;
        let combine = Recipe::new("attention/combine")
            .with("O", out.dtype())
            .with("DV", self.v_dim as u32)
            .with("LSE", u32::from(self.layouts.lse.is_some()))
            .with("VEC", vec)
            .with("WG", COMBINE_WORKGROUP)
            .with("CP", groups.next_power_of_two())
            .with("REDUCE", caps.reduce_tier());
        let combine_grid = [self.q_len, self.heads, self.batch];
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &params)?,
            combine: (splits > 1)
                .then(|| Launch::new(caps, combine, combine_grid, &params))
                .transpose()?,
            // For as many splits as any number of keys can have, so that it never grows with the cache.
            partial: self.batch * self.heads * self.q_len * most * (groups as usize + 1) * 4,
        })
    }
}

/// Invocations of a workgroup of the combining kernel.
const COMBINE_WORKGROUP: u32 = 128;

/// Groups of four values that an invocation of the decode kernel accumulates, at most: beyond, registers spill.
const ACCUMULATORS: u32 = 32;

/// How the decode kernel's invocations share rows and keys.
struct Team {
    rows: u32,
    lanes: u32,
    reduce: ReduceTier,
}

impl Team {
    /// For `rows` rows of `columns` loads, each `width` groups of four elements wide.
    fn new(
        caps: &Capabilities,
        tuning: &DecodeTuning,
        rows: usize,
        columns: u32,
        width: u32,
    ) -> Self {
        let mut rows = rows.min(tuning.rows as usize).next_power_of_two() as u32;
        rows = rows.min(tuning.rows);
        let held = |rows: u32, lanes: u32| rows * width * columns.div_ceil(lanes);
        let mut lanes = tuning.lanes;
        while lanes < 32 && held(rows, lanes) > ACCUMULATORS / 2 {
            lanes *= 2;
        }
        lanes = lanes.min(columns.next_power_of_two());
        let reduce = match caps.subgroups {
            // No subgroup may be larger than the workgroup, nor so small that sums across it save nothing.
            Some(s) if s.max <= tuning.workgroup && (s.min >= lanes || s.min >= 8) => {
                lanes = lanes.min(s.min);
                ReduceTier::Subgroup
            }
            _ => ReduceTier::Workgroup,
        };
        while rows > 1 && held(rows, lanes) > ACCUMULATORS {
            rows /= 2;
        }
        Self {
            rows,
            lanes,
            reduce,
        }
    }
}

fn four(name: &str, layout: &Layout) -> Result<[usize; 4]> {
    layout.require_float(name)?;
    let (&[a, b, c, d], &[.., stride]) = (layout.shape(), layout.strides()) else {
        return Err(Error::argument(
            name,
            format!("{layout:?}"),
            "[batch, heads, length, channels]",
        ));
    };
    if d > 1 && stride != 1 {
        return Err(Error::argument(
            name,
            format!("{layout:?}"),
            "adjacent elements in the last dimension",
        ));
    }
    Ok([a, b, c, d])
}

/// Whether every row starts at, and holds, a multiple of `n` elements.
fn multiple_of(layout: &Layout, n: usize) -> bool {
    let (shape, strides) = (layout.shape(), layout.strides());
    layout.offset().is_multiple_of(n)
        && shape[3].is_multiple_of(n)
        && (0..3).all(|d| shape[d] == 1 || strides[d].is_multiple_of(n))
}

fn strides(layout: &Layout) -> Strides {
    let s = layout.strides();
    Strides {
        offset: layout.offset() as u32,
        batch: s[0] as u32,
        head: s[1] as u32,
        row: s[2] as u32,
    }
}

fn broadcast(name: &str, layout: &Layout, full: [usize; 4]) -> Result<Broadcast> {
    let unfit = || {
        Error::argument(
            name,
            format!("{layout:?}"),
            format!("broadcastable to {full:?}, adjacent elements in the last dimension"),
        )
    };
    let missing = full.len().checked_sub(layout.rank()).ok_or_else(unfit)?;
    let mut found = [0; 4];
    for (d, (&size, &stride)) in layout.shape().iter().zip(layout.strides()).enumerate() {
        if size != 1 && size != full[missing + d] {
            return Err(unfit());
        }
        if size > 1 {
            found[missing + d] = stride as u32;
        }
    }
    let [batch, head, row, key] = found;
    if key > 1 {
        return Err(unfit());
    }
    Ok(Broadcast {
        strides: Strides {
            offset: layout.offset() as u32,
            batch,
            head,
            row,
        },
        by_key: key == 1,
    })
}
