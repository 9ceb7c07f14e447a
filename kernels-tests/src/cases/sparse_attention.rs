//! Attention over listed blocks: every block size and pattern, parts of layouts, shared lists, ragged ends, masks within
//! blocks, pages of a cache that dropped blocks.

use flashwave::DType::{F16, F32};
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionLayouts, Blocks, CooperativeTuning, Loads, Mask, Tuning,
};
use flashwave::kernels::sparse::{Causality, Pattern, SparseLayout};
use flashwave::reference::attention::{Modifiers, Place, Problem, attention};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use super::attention::{lse_slack, naive, out_slack};
use crate::inputs::{Random, poisoned, widen};
use crate::tolerance::{Outcome, check, check_in};
use crate::{Case, Failure};

/// Where keys and values lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    /// All of them, in tensors.
    Tensors,
    /// In pages, without what no later query meets.
    Pages,
}

#[derive(Clone, Copy)]
struct Setup {
    pattern: &'static str,
    block: usize,
    causality: Causality,
    /// Heads of the layout.
    lists: usize,
    /// Queries and keys that the layout covers.
    extent: [usize; 2],
    problem: Problem<'static>,
    types: [DType; 4],
    storage: Storage,
    /// By the kernel for matrix units, on an emulation of these.
    emulated: Option<Loads>,
}

impl Setup {
    /// A causal text of `length` tokens in four heads over two, with lists for each.
    fn new(pattern: &'static str, block: usize, length: usize) -> Self {
        Self {
            pattern,
            block,
            causality: Causality::Causal,
            lists: 4,
            extent: [length; 2],
            problem: Problem {
                batch: 1,
                heads: 4,
                kv_heads: 2,
                q_len: length,
                kv_len: length,
                head_dim: 16,
                v_dim: 16,
                mask: Mask::Causal,
                scale: 0.25,
                modifiers: Modifiers::default(),
            },
            types: [F32; 4],
            storage: Storage::Tensors,
            emulated: None,
        }
    }

    /// The last `q_len` of the first `kv_len` tokens.
    fn part(mut self, q_len: usize, kv_len: usize) -> Self {
        (self.problem.q_len, self.problem.kv_len) = (q_len, kv_len);
        self
    }

    fn name(&self) -> String {
        let (p, [queries, keys]) = (&self.problem, self.extent);
        let [q, k, ..] = self.types;
        let emulated = self
            .emulated
            .map_or(String::new(), |l| format!(" emulated {l:?}"));
        format!(
            "{} {} {queries}x{keys} block {} lists {} {} b{} h{}/{} {}x{} d{}/{} {q} {k} {:?}{emulated}",
            self.pattern,
            self.causality.name(),
            self.block,
            self.lists,
            p.mask,
            p.batch,
            p.heads,
            p.kv_heads,
            p.q_len,
            p.kv_len,
            p.head_dim,
            p.v_dim,
            self.storage
        )
    }

    fn layout(&self) -> flashwave::Result<SparseLayout> {
        let [queries, keys] = self.extent;
        let pattern: Pattern = self.pattern.parse()?;
        let layout = SparseLayout::builder(self.lists, queries, keys)
            .block(self.block)
            .causality(self.causality)
            .pattern(&pattern)?;
        match self.storage {
            Storage::Tensors => Ok(layout),
            Storage::Pages => layout.resident(self.problem.kv_heads, self.problem.q_len),
        }
    }

    fn blocks<'a>(&self, layout: &'a SparseLayout) -> Blocks<'a> {
        match self.storage {
            Storage::Tensors => Blocks::Listed(layout),
            Storage::Pages => Blocks::Pages {
                layout,
                keys: self.problem.kv_len,
            },
        }
    }

    /// Shapes of q, k, v, out.
    fn shapes(&self, layout: &SparseLayout) -> [[usize; 4]; 4] {
        let p = &self.problem;
        let [b, h, l] = match layout.pages() {
            Some(pages) => [1, 1, pages.total_pages() * self.block],
            None => [p.batch, p.kv_heads, p.kv_len],
        };
        [
            [p.batch, p.heads, p.q_len, p.head_dim],
            [b, h, l, p.head_dim],
            [b, h, l, p.v_dim],
            [p.batch, p.heads, p.q_len, p.v_dim],
        ]
    }

    /// Rows [kv_heads, kv_len, d] as a cache has them after all were written in turn.
    fn stored(&self, layout: &SparseLayout, rows: &[f32], d: usize) -> Vec<f32> {
        let Some(pages) = layout.pages() else {
            return rows.to_vec();
        };
        let mut memory = vec![f32::NAN; pages.total_pages() * self.block * d];
        for (row, values) in rows.chunks(d).enumerate() {
            let (head, key) = (row / self.problem.kv_len, row % self.problem.kv_len);
            let page = pages.page(head, key / self.block) as usize;
            let at = (page * self.block + key % self.block) * d;
            memory[at..at + d].copy_from_slice(values);
        }
        memory
    }

    fn case(self, group: &str) -> Case {
        let name = self.name();
        Case::new("sparse_attention", group, name.clone(), move |ctx| {
            self.run(ctx, &name)
        })
        .on_gpus(group.starts_with("large"))
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<Outcome, Failure> {
        let (p, layout) = (&self.problem, self.layout()?);
        let random = &mut Random::new(Case::seed(name));
        let [tq, tk, tv, to] = self.types;
        let q = random.normals(p.batch * p.heads * p.q_len * p.head_dim, tq);
        let k = random.normals(p.batch * p.kv_heads * p.kv_len * p.head_dim, tk);
        let v = random.normals(p.batch * p.kv_heads * p.kv_len * p.v_dim, tv);
        let [q_shape, k_shape, v_shape, out_shape] = self.shapes(&layout);
        let q_dev = Tensor::from_f32(ctx, tq, &q, q_shape)?;
        let k_dev = Tensor::from_f32(ctx, tk, &self.stored(&layout, &k, p.head_dim), k_shape)?;
        let v_dev = Tensor::from_f32(ctx, tv, &self.stored(&layout, &v, p.v_dim), v_shape)?;
        let out = poisoned(ctx, to, out_shape)?;
        let lse = poisoned(ctx, F32, [p.batch, p.heads, p.q_len])?;
        let args = AttentionArgs {
            sparse: Some(self.blocks(&layout)),
            lse: Some(&lse),
            ..AttentionArgs::new(&q_dev, &k_dev, &v_dev, &out)
        };
        let operator = self.operator(ctx.capabilities()).scale(p.scale);
        let plan = operator.plan(ctx.capabilities(), args.layouts())?;
        ctx.record(|pass| plan.launch(pass, args))?;

        let share = p.heads / layout.heads();
        let first = p.kv_len + layout.queries() - p.q_len - layout.keys();
        let met = |[_, h, i, j]: Place| layout.sees(h / share, first + i, j);
        let (exact, exact_lse) = attention(p, &widen(&q), &widen(&k), &widen(&v), |at| {
            met(at).then_some(0.0)
        });
        let (naive, naive_lse) = naive(&plan, p, [&q, &k, &v], &exact, to, |at| {
            met(at).then_some(0.0)
        });
        let outcome = check_in(to, &out.to_f32_vec()?, &exact, &naive, out_slack(p.kv_len))?;
        let lse = lse.to_f32_vec()?;
        let lse = check(&lse, &exact_lse, &naive_lse, lse_slack(p.kv_len))?;
        Ok(outcome.and(lse))
    }

    fn operator(&self, caps: &Capabilities) -> Attention {
        let (p, operator) = (&self.problem, Attention::new(self.problem.mask));
        let Some(loads) = self.emulated else {
            return operator;
        };
        let mut tuning = Tuning::new(caps, p.head_dim, p.v_dim);
        tuning.cooperative = Some(CooperativeTuning {
            loads,
            ..CooperativeTuning::EMULATED
        });
        operator.tuning(tuning)
    }

    fn launches(&self, caps: &Capabilities) -> Vec<Launch> {
        let layout = self.layout().expect("a valid layout");
        let made = |i: usize| {
            Layout::contiguous(self.types[i], self.shapes(&layout)[i]).expect("a layout")
        };
        let [q, k, v, out] = [made(0), made(1), made(2), made(3)];
        let lse = Layout::contiguous(F32, &q.shape()[..3]).expect("a layout");
        let layouts = AttentionLayouts {
            sparse: Some(self.blocks(&layout)),
            lse: Some(&lse),
            ..AttentionLayouts::new(&q, &k, &v, &out)
        };
        let plan = self.operator(caps).plan(caps, layouts);
        plan.expect("a valid problem").launches().cloned().collect()
    }
}

/// Every setup, with its group.
fn setups() -> Vec<(&'static str, Setup)> {
    let mut setups = Vec::new();
    let mut add = |group, setup| setups.push((group, setup));
    for block in [16, 32, 64, 128] {
        let mut setup = Setup::new("s2:stride=4,window=2", block, 4 * block + 3);
        add("block sizes", setup);
        setup.types = [F16; 4];
        add("block sizes", setup);
    }
    for pattern in [
        "s2:stride=2/4,window=1,sinks=1",
        "longgen:window=2,sinks=1,stride=4",
        "bigbird:window=1,global=1,random=2,seed=3",
        "dilated:window=3,dilation=2",
        "banded:left=1,right=1",
        "dense",
    ] {
        for (causality, mask) in [
            (Causality::Causal, Mask::Causal),
            (Causality::Full, Mask::Full),
        ] {
            let mut setup = Setup::new(pattern, 16, 133);
            setup.causality = causality;
            setup.problem.mask = mask;
            add("patterns", setup);
        }
    }
    // Queries and keys of unlike numbers, lines that lie across two blocks of keys, rows that see nothing.
    for extent in [[40, 133], [133, 40], [17, 48]] {
        let mut setup = Setup::new("banded:left=2", 16, 133);
        setup.extent = extent;
        add("lengths", setup.part(extent[0], extent[1]));
        let mut empty = Setup::new("s2:stride=3", 16, 133);
        // Lines of the other heads list nothing but their own block.
        (empty.extent, empty.lists) = (extent, 2);
        add("lengths", empty.part(extent[0], extent[1]));
    }
    // Chunks and tokens of a text: any run of queries, before the layout's end.
    let text = Setup::new("s2:stride=4,window=2", 16, 200);
    for (q_len, kv_len) in [
        (30, 100),
        (33, 33),
        (50, 200),
        (1, 77),
        (3, 131),
        (16, 16),
        (16, 105),
        (5, 200),
    ] {
        let mut setup = text.part(q_len, kv_len);
        add("parts", setup);
        setup.types = [F16; 4];
        add("parts", setup);
    }
    for lists in [1, 2] {
        let mut setup = Setup::new("s2:stride=2,window=1", 16, 75);
        setup.lists = lists;
        setup.problem.batch = 2;
        add("shared lists", setup);
        add("shared lists", setup.part(21, 60));
    }
    // Positions within listed blocks.
    for mask in [
        Mask::Window {
            left: 20,
            right: 0,
            sinks: 3,
        },
        Mask::Causal,
        Mask::Prefix(30),
    ] {
        let mut setup = Setup::new("banded:left=3,right=2", 16, 100);
        setup.causality = Causality::Full;
        setup.problem.mask = mask;
        add("masks within blocks", setup);
    }
    for d in [40, 128] {
        let mut setup = Setup::new("s2:stride=4,window=2", 64, 200);
        (setup.problem.head_dim, setup.problem.v_dim) = (d, d - 8);
        setup.types = [F16; 4];
        add("types and channels", setup);
    }
    // The tiling that matrix units take for blocks of 128, lines of unlike lengths.
    for pattern in ["s2:stride=4,window=2", "banded:left=1"] {
        for (q_len, kv_len) in [(640, 640), (300, 500)] {
            let mut setup = Setup::new(pattern, 128, 640);
            (setup.problem.head_dim, setup.problem.v_dim) = (128, 128);
            setup.types = [F16; 4];
            add("large", setup.part(q_len, kv_len));
        }
    }
    setups.extend(grid());
    let mut add = |group, setup| setups.push((group, setup));
    for pattern in ["s2:stride=4,window=2", "longgen:window=3,sinks=1,stride=5"] {
        for lists in [1, 4] {
            for (q_len, kv_len) in [(40, 190), (1, 111), (200, 200)] {
                let mut setup = Setup::new(pattern, 16, 200);
                (setup.lists, setup.storage) = (lists, Storage::Pages);
                if lists == 1 {
                    setup.types = [F16; 4];
                }
                add("pages", setup.part(q_len, kv_len));
            }
        }
    }
    // Several tiles a block, lines that end within one, fewer keys than the layout has, an empty list.
    for loads in [Loads::Together, Loads::Ahead] {
        let mut setup = Setup::new("s2:stride=3,window=2", 64, 200);
        (setup.types, setup.emulated) = ([F16; 4], Some(loads));
        add("matrix units emulated", setup.part(70, 150));
        setup.causality = Causality::Full;
        setup.problem.mask = Mask::Full;
        add("matrix units emulated", setup.part(40, 140));
        let mut empty = Setup::new("s2:stride=3", 16, 48);
        (empty.types, empty.emulated) = ([F16; 4], Some(loads));
        (empty.extent, empty.lists) = ([48, 17], 2);
        add("matrix units emulated", empty.part(48, 17));
    }
    setups
}

/// flash-attention's grid for block-sparse masks, on GPUs alone: block diagonal, block causal, windows of blocks, S2.
fn grid() -> Vec<(&'static str, Setup)> {
    let pairs = [
        [1, 1],
        [64, 128],
        [128, 192],
        [256, 256],
        [239, 1],
        [799, 3],
        [113, 203],
        [113, 128],
        [128, 217],
        [113, 211],
        [108, 256],
        [256, 512],
        [384, 256],
        [640, 128],
        [512, 256],
        [1024, 1024],
        [1023, 1024],
        [1024, 1023],
        [4096, 4096],
        [4224, 4224],
        [200, 200],
        [300, 300],
        [129, 129],
        [255, 255],
        [500, 512],
        [512, 500],
        [333, 444],
    ];
    let patterns = [
        "banded:left=0",
        "dense",
        "banded:left=2",
        "s2:stride=8,window=2",
    ];
    let mut setups = Vec::new();
    for [queries, keys] in pairs {
        for (n, pattern) in patterns.into_iter().enumerate() {
            // The reference would take minutes.
            if pattern == "dense" && queries > 2000 {
                continue;
            }
            let mut setup = Setup::new(pattern, [64, 128][n % 2], keys);
            setup.extent = [queries, keys];
            (setup.problem.heads, setup.problem.kv_heads, setup.lists) = (2, 1, 2);
            (setup.problem.head_dim, setup.problem.v_dim) = (64, 64);
            setup.types = [F16; 4];
            setups.push(("large grid", setup.part(queries, keys)));
        }
    }
    setups
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let setups = setups().into_iter();
    setups.map(|(group, setup)| setup.case(group)).collect()
}

/// The launches of the cases.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let setups = setups().into_iter();
    setups.flat_map(|(_, setup)| setup.launches(caps)).collect()
}
