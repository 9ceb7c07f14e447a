//! A call to attention, checked: its sizes, its masks by their strides, and the parameters that the shaders take.

use bytemuck::{Pod, Zeroable};

use super::blocks::{Blocks, Listed, Sizes};
use super::cached::Caches;
use super::{
    Attention, AttentionLayouts, Band, DecodeTuning, MAX_HEAD_DIM, MAX_VALUE_DIM, Mask, Tuning,
};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::ceilings::Probe;
use crate::layout::Layout;
use crate::recipe::Recipe;
use crate::tuned::{Picked, Question, Work, rounded};

/// Mirrors the shaders' `Params`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    q: Strides,
    k: Strides,
    v: Strides,
    out: Strides,
    bias: Strides,
    mask: Strides,
    band: Band,
    key_strides: u32,
    lse_offset: u32,
    scale: f32,
    cap: f32,
    slopes_offset: u32,
    sink_offset: u32,
    group: u32,
    q_len: u32,
    kv_len: u32,
    splits: u32,
    k_scales: u32,
    v_scales: u32,
    page_size: u32,
    pages: u32,
    blocks: u32,
    batches: u32,
    kv_heads: u32,
}

/// Offset and strides of batch, head and row.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct Strides {
    offset: u32,
    batch: u32,
    head: u32,
    row: u32,
}

/// A checked call.
pub(super) struct Problem<'a> {
    pub(super) layouts: &'a AttentionLayouts<'a>,
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) q_len: usize,
    pub(super) kv_len: usize,
    pub(super) head_dim: usize,
    pub(super) v_dim: usize,
    pub(super) mask_kind: Mask,
    /// The scale times log2 e; with a softcap, over the cap.
    pub(super) scale: f32,
    /// The softcap times log2 e, or zero.
    cap: f32,
    bias: Option<Broadcast>,
    mask: Option<Broadcast>,
    pub(super) listed: Option<Listed<'a>>,
    /// Where keys and values lie if not in tensors.
    pub(super) caches: Option<Caches>,
}

/// A bias or mask by its strides.
struct Broadcast {
    strides: Strides,
    /// Neighbouring keys have elements of their own.
    by_key: bool,
}

impl<'a> Problem<'a> {
    pub(super) fn new(operator: &Attention, layouts: &'a AttentionLayouts<'a>) -> Result<Self> {
        let &AttentionLayouts { q, k, v, out, .. } = layouts;
        let [batch, heads, q_len, head_dim] = four("q", q)?;
        let [_, k_heads, k_len, _] = four("k", k)?;
        let [.., v_dim] = four("v", v)?;
        // The heads and lengths of tensors, or those that pages stand for.
        let (kv_heads, kv_len, stored) = match layouts.sparse {
            Some(Blocks::Pages { layout, keys }) => {
                let Some(pages) = layout.pages() else {
                    return Err(Error::argument(
                        "sparse",
                        format!("{layout:?}, for keys that are all there"),
                        "for pages, a layout made by SparseLayout::resident",
                    ));
                };
                let rows = pages.total_pages() * layout.block();
                (pages.kv_heads(), keys, [1, 1, rows])
            }
            _ => (k_heads, k_len, [batch, k_heads, k_len]),
        };
        four("out", out)?;
        for (name, dim, most) in [("q", head_dim, MAX_HEAD_DIM), ("v", v_dim, MAX_VALUE_DIM)] {
            if dim > most {
                return Err(Error::argument(
                    name,
                    format!("{dim} channels a head"),
                    format!("at most {most}"),
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
        let [b, h, l] = stored;
        k.require_shape("k", &[b, h, l, head_dim])?;
        v.require_shape("v", &[b, h, l, v_dim])?;
        out.require_shape("out", &[batch, heads, q_len, v_dim])?;
        if let Some(lse) = layouts.lse {
            lse.require_dtype("lse", DType::F32)?;
            lse.require_shape("lse", &[batch, heads, q_len])?;
            if !lse.is_contiguous() {
                return Err(Error::argument("lse", format!("{lse:?}"), "contiguous"));
            }
        }
        if let Some(packing) = layouts.documents
            && [packing.q_len(), packing.kv_len()] != [q_len, kv_len]
        {
            return Err(Error::argument(
                "documents",
                format!("{} queries and {} keys", packing.q_len(), packing.kv_len()),
                format!("q's {q_len} and k's {kv_len}"),
            ));
        }
        for (name, layout) in [
            ("slopes", layouts.slopes),
            ("sink_logits", layouts.sink_logits),
        ] {
            let Some(layout) = layout else { continue };
            layout.require_dtype(name, DType::F32)?;
            layout.require_shape(name, &[heads])?;
            if !layout.is_contiguous() {
                return Err(Error::argument(name, format!("{layout:?}"), "contiguous"));
            }
        }
        let listed = match layouts.sparse {
            None => None,
            Some(_) if layouts.documents.is_some() => {
                let allowed = "either of them in one call";
                return Err(Error::argument("sparse", "beside documents", allowed));
            }
            Some(Blocks::Listed(layout)) if layout.pages().is_some() => {
                let allowed = "for pages, Blocks::Pages";
                return Err(Error::argument(
                    "sparse",
                    format!("{layout:?} with pages"),
                    allowed,
                ));
            }
            Some(Blocks::Pages { .. }) if batch != 1 => {
                return Err(Error::argument(
                    "q",
                    format!("{batch} batches"),
                    "1 with pages",
                ));
            }
            Some(blocks) => {
                let sizes = Sizes {
                    heads,
                    q_len,
                    kv_len,
                    band: operator.mask.band(),
                };
                Some(Listed::new(blocks.layout(), sizes)?)
            }
        };
        let (scale, cap) = score_factors(operator, head_dim)?;
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
            mask_kind: operator.mask,
            scale,
            cap,
            bias,
            mask,
            listed,
            caches: None,
        })
    }

    /// The tensors of the call by name.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let optional = [
            ("bias", self.layouts.bias.is_some()),
            ("mask", self.layouts.mask.is_some()),
            ("documents", self.layouts.documents.is_some()),
            ("slopes", self.layouts.slopes.is_some()),
            ("sink_logits", self.layouts.sink_logits.is_some()),
            ("lse", self.layouts.lse.is_some()),
            ("sparse", self.listed.is_some()),
        ];
        let there = optional.into_iter().filter(|(_, there)| *there);
        ["q", "k", "v", "out"]
            .into_iter()
            .chain(there.map(|(name, _)| name))
    }

    /// How many tensors a kernel binds for the call, not counting scratch.
    pub(super) fn bindings(&self) -> usize {
        self.names().count()
    }

    pub(super) fn require_bindings(&self, most: usize) -> Result<()> {
        let Some(over) = self.names().nth(most) else {
            return Ok(());
        };
        let all: Vec<_> = self.names().collect();
        Err(Error::argument(
            over,
            format!("the {}th tensor of {}", most + 1, all.join(", ")),
            format!("at most {most} tensors in one call on this device"),
        ))
    }

    /// The device's defaults for the call.
    pub(super) fn usual_tuning(&self, caps: &Capabilities) -> Tuning {
        let mut tuning = Tuning::new(caps, self.head_dim, self.v_dim);
        if let (Some(listed), Some(cooperative)) = (&self.listed, &mut tuning.cooperative) {
            let block = listed.layout.block() as u32;
            *cooperative = cooperative.listed(caps, [self.head_dim, self.v_dim], block);
        }
        tuning
    }

    /// What is stored for calls like this one of a kernel, or the default; that, where the caller has tunings or lists blocks.
    pub(super) fn pick<T: Copy + std::fmt::Debug + Send + Sync + 'static>(
        &self,
        kernel: &'static str,
        caps: &Capabilities,
        own: Option<Tuning>,
        question: &Question<'_, T>,
    ) -> Picked<T> {
        if own.is_some() || self.listed.is_some() {
            return Picked::given(question.default);
        }
        let class = || {
            let recipe = match &self.caches {
                None => self.recipe(kernel),
                Some(caches) => self
                    .recipe(kernel)
                    .with("KS", caches.keys.scaling.name())
                    .with("VS", caches.values.scaling.name())
                    .with("PAGE", caches.page),
            };
            // Keys by powers of four: a growing text changes its class a few times only.
            let visits = self.visits().next_power_of_two() as u32;
            recipe
                .with("GROUP", (self.heads / self.kv_heads) as u32)
                .with("HEADS", rounded(self.batch * self.heads))
                .with("QUERIES", rounded(self.q_len))
                .with("KEYS", visits << (visits.ilog2() % 2))
        };
        caps.tuned.pick(class, question)
    }

    /// [`pick`](Self::pick) for the decode kernel.
    pub(super) fn pick_decode(
        &self,
        caps: &Capabilities,
        own: Option<Tuning>,
        default: DecodeTuning,
    ) -> Picked<DecodeTuning> {
        let question = Question {
            default,
            candidates: &|| DecodeTuning::candidates(caps),
            admits: &|t| t.check(caps).is_ok(),
            work: &|_| self.read(),
        };
        self.pick("attention/decode", caps, own, &question)
    }

    /// Keys that some query sees.
    fn visits(&self) -> usize {
        self.mask_kind.band().visits(self.q_len, self.kv_len)
    }

    /// Reading the keys and values that are visited.
    pub(super) fn read(&self) -> Work {
        let AttentionLayouts { k, v, .. } = self.layouts;
        let [k, v] = match &self.caches {
            None => [k.dtype().size(), v.dtype().size()],
            Some(caches) => [caches.keys.code.size(), caches.values.code.size()],
        };
        let row = self.head_dim * k + self.v_dim * v;
        Work::bytes((self.batch * self.kv_heads * self.visits() * row) as u64)
    }

    /// The products of queries that see every key; of masks nothing is said.
    pub(super) fn multiplied(&self, by: Probe) -> Work {
        let scores = match self.mask_kind {
            Mask::Full => self.batch * self.heads * self.q_len * self.kv_len,
            _ => 0,
        };
        Work {
            bytes: 0.0,
            operations: 2.0 * (scores * (self.head_dim + self.v_dim)) as f64,
            by,
        }
    }

    /// Whether scores are bent.
    pub(super) fn softcapped(&self) -> bool {
        self.cap > 0.0
    }

    pub(super) fn params(&self, splits: usize) -> Params {
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let [q, mut k, mut v, out] = [q, k, v, out].map(|l| strides(l));
        if let Some(Blocks::Pages { .. }) = self.layouts.sparse {
            // Pages are those of all heads.
            (k.head, v.head) = (0, 0);
        }
        let of = |b: &Option<Broadcast>| b.as_ref().map_or(Strides::default(), |b| b.strides);
        let by_key = |b: &Option<Broadcast>| b.as_ref().is_some_and(|b| b.by_key) as u32;
        let caches = self.caches.as_ref();
        if let Some(caches) = caches {
            k.row = caches.keys.row as u32;
            v.row = caches.values.row as u32;
        }
        Params {
            q,
            k,
            v,
            out,
            bias: of(&self.bias),
            mask: of(&self.mask),
            band: self.mask_kind.band(),
            key_strides: by_key(&self.bias) | by_key(&self.mask) << 1,
            lse_offset: self.layouts.lse.map_or(0, |l| l.offset() as u32),
            scale: self.scale,
            cap: self.cap,
            slopes_offset: self.layouts.slopes.map_or(0, |l| l.offset() as u32),
            sink_offset: self.layouts.sink_logits.map_or(0, |l| l.offset() as u32),
            group: (self.heads / self.kv_heads) as u32,
            q_len: self.q_len as u32,
            kv_len: self.kv_len as u32,
            splits: splits as u32,
            k_scales: caches.map_or(0, |c| c.keys.scales_at as u32),
            v_scales: caches.map_or(0, |c| c.values.scales_at as u32),
            page_size: caches.map_or(0, |c| c.page_size),
            pages: caches.map_or(0, |c| c.pages),
            blocks: caches.map_or(0, |c| c.blocks),
            batches: self.batch as u32,
            kv_heads: self.kv_heads as u32,
        }
    }

    pub(super) fn recipe(&self, shader: &'static str) -> Recipe {
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let codes = self.caches.as_ref().map(|c| (c.keys.code, c.values.code));
        let seen = match self.layouts.documents {
            Some(_) => "rows",
            None => self.mask_kind.variant(),
        };
        let recipe = Recipe::new(shader)
            .with("Q", q.dtype())
            .with("K", codes.map_or(k.dtype(), |(k, _)| k))
            .with("V", codes.map_or(v.dtype(), |(_, v)| v))
            .with("O", out.dtype())
            .with("D", self.head_dim as u32)
            .with("DV", self.v_dim as u32)
            .with("SEEN", seen)
            .with("BIAS", self.layouts.bias.map(Layout::dtype))
            .with("MASK", u32::from(self.mask.is_some()))
            .with("SOFTCAP", u32::from(self.cap > 0.0))
            .with("SLOPES", u32::from(self.layouts.slopes.is_some()))
            .with("SINK", u32::from(self.layouts.sink_logits.is_some()))
            .with("LSE", u32::from(self.layouts.lse.is_some()));
        match &self.listed {
            None => recipe.with("TILES", "range"),
            Some(listed) => recipe
                .with("TILES", "listed")
                .with("BLOCK", listed.layout.block() as u32)
                .with("SHARE", listed.share as u32),
        }
    }
}

/// What shaders multiply dot products by, and the bent scores: see `open_scores`.
fn score_factors(operator: &Attention, head_dim: usize) -> Result<(f32, f32)> {
    let scale = match operator.scale {
        Some(scale) => f64::from(scale),
        None => 1.0 / (head_dim as f64).sqrt(),
    };
    let log2_e = std::f64::consts::LOG2_E;
    if !((scale * log2_e) as f32).is_finite() {
        return Err(Error::argument("scale", scale, "a finite number"));
    }
    let Some(softcap) = operator.softcap else {
        return Ok(((scale * log2_e) as f32, 0.0));
    };
    let inner = (scale / f64::from(softcap)) as f32;
    if !((1e-30..=1e30).contains(&softcap) && inner.is_finite()) {
        return Err(Error::argument(
            "softcap",
            format!("{softcap:?}"),
            "1e-30 to 1e30, and scale / softcap finite",
        ));
    }
    Ok((inner, (f64::from(softcap) * log2_e) as f32))
}

pub(super) fn four(name: &str, layout: &Layout) -> Result<[usize; 4]> {
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
pub(super) fn multiple_of(layout: &Layout, n: usize) -> bool {
    let (shape, strides) = (layout.shape(), layout.strides());
    layout.offset().is_multiple_of(n)
        && shape[3].is_multiple_of(n)
        && (0..3).all(|d| shape[d] == 1 || strides[d].is_multiple_of(n))
}

pub(super) fn strides(layout: &Layout) -> Strides {
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
