//! Attention over caches: every format, block tables, sequences of unlike lengths, channels in an order of their own;
//! and writing to caches, bit by bit as the CPU does.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::attention::{
    Attention, AttentionPlan, BlockLayout, BlockTable, CacheArgs, CacheLayouts, ChannelOrder,
    FlashDecodeTuning, KvFormat, KvLayout, KvStore, Mask, TokenLayout, Tokens, Tuning, plan_append,
};
use flashwave::reference::attention::{Modifiers, Problem, attention};
use flashwave::reference::kv::{StoredRow, decode, encode};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use super::attention::{lse_slack, naive, out_slack};
use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

use KvFormat::{Block8, F8E4M3, F8E5M2, Int8};

/// Tokens to a page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pages {
    /// A page for each sequence, in order.
    Contiguous,
    /// Blocks in pages drawn at random.
    Of(usize),
}

const SOFTCAP: f32 = 20.0;

/// Which kernel decodes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decoder {
    /// The planner's choice.
    Default,
    /// The kernel without matrix units.
    Plain,
    /// The kernel for matrix units, on an emulation of these.
    Emulated(FlashDecodeTuning),
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    keys: KvFormat,
    values: KvFormat,
    /// Query heads, key heads.
    heads: [usize; 2],
    q_len: usize,
    /// Tokens of each sequence.
    lengths: &'static [usize],
    dim: usize,
    v_dim: usize,
    pages: Pages,
    mask: Mask,
    ordered: bool,
    /// Scores bent, ALiBi, and a sink of every head.
    modified: bool,
    q: DType,
    out: DType,
    /// Keys split for so many workgroups; the default if zero.
    split: u32,
    decoder: Decoder,
}

impl Setup {
    fn new(format: KvFormat, lengths: &'static [usize], pages: Pages) -> Self {
        Self {
            keys: format,
            values: format,
            heads: [8, 2],
            q_len: 1,
            lengths,
            dim: 64,
            v_dim: 64,
            pages,
            mask: Mask::Causal,
            ordered: false,
            modified: false,
            q: F32,
            out: F32,
            split: 0,
            decoder: Decoder::Default,
        }
    }

    fn name(&self) -> String {
        let Self {
            keys,
            values,
            heads,
            q_len,
            lengths,
            dim,
            v_dim,
            pages,
            mask,
            ordered,
            modified,
            q,
            out,
            split,
            decoder,
        } = self;
        let order = if *ordered { " ordered" } else { "" };
        let modified = if *modified { " modified" } else { "" };
        let decoder = match decoder {
            Decoder::Default => String::new(),
            Decoder::Plain => " plain".into(),
            Decoder::Emulated(t) => format!(" emulated {}", t.keys),
        };
        format!(
            "{keys} {values} h{}/{} {q_len}x{lengths:?} d{dim}/{v_dim} {pages:?} {mask} {q} -> {out} split {split}{order}{modified}{decoder}",
            heads[0], heads[1]
        )
    }

    /// Whether to ask for logarithms: with modifiers and pages there is one tensor too many for eight.
    fn logs(&self) -> bool {
        !self.modified || self.pages == Pages::Contiguous
    }

    fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(1)
    }

    /// Blocks of a sequence.
    fn blocks(&self) -> usize {
        match self.pages {
            Pages::Contiguous => 1,
            Pages::Of(size) => self.longest().div_ceil(size) + 1,
        }
    }

    fn layouts(&self) -> flashwave::Result<[KvLayout; 2]> {
        let (pages, size) = match self.pages {
            // Room to spare.
            Pages::Contiguous => (self.lengths.len(), self.longest() + 3),
            Pages::Of(size) => (self.lengths.len() * self.blocks() + 2, size),
        };
        let of = |format, dim| KvLayout::new(format, pages, self.heads[1], size, dim);
        Ok([of(self.keys, self.dim)?, of(self.values, self.v_dim)?])
    }

    fn operator(&self, caps: &Capabilities) -> Attention {
        let mut operator = Attention::new(self.mask);
        if self.modified {
            operator = operator.softcap(SOFTCAP);
        }
        let mut tuning = Tuning::new(caps, self.dim, self.v_dim);
        match self.decoder {
            Decoder::Default if self.split == 0 => return operator,
            Decoder::Default => {}
            Decoder::Plain => tuning.flash_decode = None,
            Decoder::Emulated(sizes) => tuning.flash_decode = Some(sizes),
        }
        if self.split > 0 {
            tuning.decode.workgroups = self.split;
            tuning.decode.split_keys = 1;
            if let Some(sizes) = &mut tuning.flash_decode {
                sizes.workgroups = self.split;
                sizes.split_keys = 1;
            }
        }
        operator.tuning(tuning)
    }

    fn problem<'a>(&self, tokens: usize, modifiers: Modifiers<'a>) -> Problem<'a> {
        Problem {
            batch: 1,
            heads: self.heads[0],
            kv_heads: self.heads[1],
            q_len: self.q_len,
            kv_len: tokens,
            head_dim: self.dim,
            v_dim: self.v_dim,
            mask: self.mask,
            scale: 1.0 / (self.dim as f32).sqrt(),
            modifiers,
        }
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<Outcome, Failure> {
        let random = &mut Random::new(Case::seed(name));
        let layouts = self.layouts()?;
        let (batch, kv_heads) = (self.lengths.len(), self.heads[1]);
        let blocks = page_numbers(random, batch * self.blocks(), layouts[0].pages);
        let place = |b: usize, token: usize| match self.pages {
            Pages::Contiguous => (b, token),
            Pages::Of(size) => (
                blocks[b * self.blocks() + token / size] as usize,
                token % size,
            ),
        };
        let order: Vec<u32> = (0..kv_heads)
            .flat_map(|_| page_numbers(random, self.dim, self.dim))
            .collect();
        // What the caches mean, by sequence: [kv_heads, tokens, dim].
        let mut meant = [Vec::new(), Vec::new()];
        let mut stores = Vec::new();
        for (i, layout) in layouts.iter().enumerate() {
            let mut words = vec![u32::MAX; layout.words()];
            for (b, &tokens) in self.lengths.iter().enumerate() {
                let mut sequence = Vec::new();
                for head in 0..kv_heads {
                    for token in 0..tokens {
                        let row = random.normals(layout.dim, F32);
                        let stored = encode(layout, &row);
                        let (page, slot) = place(b, token);
                        put(layout, &mut words, [page, head, slot], &stored);
                        let row = decode(layout, &stored);
                        if i == 0 && self.ordered {
                            let mut turned = vec![0.0; self.dim];
                            for (&c, &x) in order[head * self.dim..].iter().zip(&row) {
                                turned[c as usize] = x;
                            }
                            sequence.extend(turned);
                        } else {
                            sequence.extend(row);
                        }
                    }
                }
                meant[i].push(sequence);
            }
            let store = KvStore::empty(ctx, *layout)?;
            store.memory().write(&words)?;
            stores.push(store);
        }
        let q_shape = [batch, self.heads[0], self.q_len, self.dim];
        let q = random.normals(q_shape.iter().product(), self.q);
        let q_dev = Tensor::from_f32(ctx, self.q, &q, q_shape)?;
        let out = poisoned(
            ctx,
            self.out,
            [batch, self.heads[0], self.q_len, self.v_dim],
        )?;
        let lse = poisoned(ctx, F32, [batch, self.heads[0], self.q_len])?;
        let lengths: Vec<u32> = self.lengths.iter().map(|&n| n as u32).collect();
        let table = match self.pages {
            Pages::Contiguous => None,
            Pages::Of(_) => Some(BlockTable::new(ctx, &layouts[0], &lengths, &blocks)?),
        };
        let order = match self.ordered {
            true => Some(ChannelOrder::new(ctx, &order, kv_heads, self.dim)?),
            false => None,
        };
        // ALiBi's slopes, and logits of sinks.
        let mut a_head = || random.normals(self.heads[0], F32);
        let modifiers = self.modified.then(|| {
            let slopes: Vec<f32> = a_head().iter().map(|x| x.abs() / 64.0).collect();
            (slopes, a_head())
        });
        let tensors = match &modifiers {
            Some((slopes, sinks)) => Some((
                Tensor::from_slice(ctx, slopes, [self.heads[0]])?,
                Tensor::from_slice(ctx, sinks, [self.heads[0]])?,
            )),
            None => None,
        };
        let args = CacheArgs {
            q: &q_dev,
            keys: &stores[0],
            values: &stores[1],
            tokens: match &table {
                Some(table) => Tokens::Paged(table),
                None => Tokens::Contiguous(self.longest()),
            },
            order: order.as_ref(),
            slopes: tensors.as_ref().map(|t| &t.0),
            sink_logits: tensors.as_ref().map(|t| &t.1),
            out: &out,
            lse: self.logs().then_some(&lse),
        };
        let operator = self.operator(ctx.capabilities());
        let plan = operator.plan_cached(ctx.capabilities(), args.layouts())?;
        ctx.record(|pass| plan.launch_cached(pass, args))?;
        let (out, lse) = (out.to_f32_vec()?, lse.to_f32_vec()?);
        let mut outcome = Outcome::default();
        let (rows, wide) = (self.heads[0] * self.q_len, self.v_dim);
        for (b, &tokens) in self.lengths.iter().enumerate() {
            let modifiers = match &modifiers {
                Some((slopes, sinks)) => Modifiers {
                    softcap: Some(SOFTCAP),
                    slopes: Some(slopes),
                    sink_logits: Some(sinks),
                    ..Modifiers::default()
                },
                None => Modifiers::default(),
            };
            let p = self.problem(tokens, modifiers);
            let bent = if self.modified {
                7.0 * f64::from(SOFTCAP)
            } else {
                0.0
            };
            let slack = |slack: Ulps| Ulps(slack.0 + bent);
            let q = &q[b * rows * self.dim..][..rows * self.dim];
            let (k, v) = (&meant[0][b], &meant[1][b]);
            let (exact, exact_lse) = attention(&p, &widen(q), &widen(k), &widen(v), |_| Some(0.0));
            let (naive, naive_lse) = naive(&plan, &p, [q, k, v], &exact, self.out, |_| Some(0.0));
            let own = &out[b * rows * wide..][..rows * wide];
            outcome = outcome.and(check(own, &exact, &naive, slack(out_slack(tokens.max(1))))?);
            if !self.logs() {
                continue;
            }
            let own = &lse[b * rows..][..rows];
            outcome = outcome.and(check(
                own,
                &exact_lse,
                &naive_lse,
                slack(lse_slack(tokens.max(1))),
            )?);
        }
        Ok(outcome)
    }

    fn plan(&self, caps: &Capabilities) -> flashwave::Result<AttentionPlan> {
        let [keys, values] = self.layouts()?;
        let batch = self.lengths.len();
        let contiguous = |dtype, shape: &[usize]| Layout::contiguous(dtype, shape);
        let q = contiguous(self.q, &[batch, self.heads[0], self.q_len, self.dim])?;
        let out = contiguous(self.out, &[batch, self.heads[0], self.q_len, self.v_dim])?;
        let lse = contiguous(F32, &[batch, self.heads[0], self.q_len])?;
        let a_head = contiguous(F32, &[self.heads[0]])?;
        let layouts = CacheLayouts {
            q: &q,
            keys,
            values,
            tokens: token_layout(self.pages, &keys, batch, self.blocks(), self.longest()),
            ordered: self.ordered,
            slopes: self.modified.then_some(&a_head),
            sink_logits: self.modified.then_some(&a_head),
            out: &out,
            lse: self.logs().then_some(&lse),
        };
        self.operator(caps).plan_cached(caps, layouts)
    }
}

fn token_layout(
    pages: Pages,
    pool: &KvLayout,
    batch: usize,
    blocks: usize,
    longest: usize,
) -> TokenLayout {
    match pages {
        Pages::Contiguous => TokenLayout::Contiguous(longest),
        Pages::Of(page_size) => TokenLayout::Paged(BlockLayout {
            batch,
            blocks,
            pages: pool.pages,
            page_size,
            longest,
        }),
    }
}

/// The first `n` of 0..all, shuffled.
fn page_numbers(random: &mut Random, n: usize, all: usize) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..all as u32).collect();
    for i in 0..n.min(all) {
        numbers.swap(i, i + random.below(all - i));
    }
    numbers.truncate(n);
    numbers
}

/// Writes a row where `layout` has it.
fn put(layout: &KvLayout, words: &mut [u32], [page, head, slot]: [usize; 3], stored: &StoredRow) {
    let row = (page * layout.heads + head) * layout.page_size + slot;
    let (codes, scales) = (stored.codes.len(), stored.scales.len());
    words[row * codes..][..codes].copy_from_slice(&stored.codes);
    let rows = layout.pages * layout.heads * layout.page_size;
    words[rows * codes + row * scales..][..scales].copy_from_slice(&stored.scales);
}

/// Rows written to a cache.
#[derive(Clone, Copy, Debug)]
struct Append {
    format: KvFormat,
    from: DType,
    heads: usize,
    dim: usize,
    /// Tokens written, and of each sequence in all.
    n: usize,
    lengths: &'static [usize],
    pages: Pages,
    ordered: bool,
}

impl Append {
    fn setup(&self) -> Setup {
        Setup {
            heads: [self.heads; 2],
            dim: self.dim,
            v_dim: self.dim,
            ..Setup::new(self.format, self.lengths, self.pages)
        }
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<Outcome, Failure> {
        let random = &mut Random::new(Case::seed(name));
        let setup = self.setup();
        let [layout, _] = setup.layouts()?;
        let (batch, dim) = (self.lengths.len(), self.dim);
        let blocks = page_numbers(random, batch * setup.blocks(), layout.pages);
        let mut values = random.normals(batch * self.heads * self.n * dim, self.from);
        // A row of zeros, and one of numbers that no small type has.
        values[..dim].fill(0.0);
        for x in values.iter_mut().rev().take(dim) {
            *x = round(*x * 3e4, self.from);
        }
        let rows = Tensor::from_f32(ctx, self.from, &values, [batch, self.heads, self.n, dim])?;
        let order: Vec<u32> = (0..self.heads)
            .flat_map(|_| page_numbers(random, dim, dim))
            .collect();
        let store = KvStore::empty(ctx, layout)?;
        let poison = vec![0xdead_beef; layout.words()];
        store.memory().write(&poison)?;
        let lengths: Vec<u32> = self.lengths.iter().map(|&n| n as u32).collect();
        let table = match self.pages {
            Pages::Contiguous => None,
            Pages::Of(_) => Some(BlockTable::new(ctx, &layout, &lengths, &blocks)?),
        };
        let tokens = match &table {
            Some(table) => Tokens::Paged(table),
            None => Tokens::Contiguous(setup.longest()),
        };
        let order_dev = match self.ordered {
            true => Some(ChannelOrder::new(ctx, &order, self.heads, dim)?),
            false => None,
        };
        ctx.record(|pass| store.append(pass, &rows, tokens, order_dev.as_ref()))?;

        let mut expected = poison;
        for (r, row) in values.chunks(dim).enumerate() {
            let (b, head, i) = (r / self.n / self.heads, r / self.n % self.heads, r % self.n);
            let token = self.lengths[b] - self.n + i;
            let (page, slot) = match self.pages {
                Pages::Contiguous => (b, token),
                Pages::Of(size) => (
                    blocks[b * setup.blocks() + token / size] as usize,
                    token % size,
                ),
            };
            let turned: Vec<f32> = match self.ordered {
                true => (0..dim)
                    .map(|c| row[order[head * dim + c] as usize])
                    .collect(),
                false => row.to_vec(),
            };
            put(
                &layout,
                &mut expected,
                [page, head, slot],
                &encode(&layout, &turned),
            );
        }
        check_equal(&store.memory().to_vec::<u32>()?, &expected)
    }

    fn launch(&self, caps: &Capabilities) -> flashwave::Result<Launch> {
        let setup = self.setup();
        let [layout, _] = setup.layouts()?;
        let batch = self.lengths.len();
        let rows = Layout::contiguous(self.from, [batch, self.heads, self.n, self.dim])?;
        let tokens = token_layout(self.pages, &layout, batch, setup.blocks(), setup.longest());
        plan_append(caps, &rows, &layout, tokens, self.ordered)
    }
}

fn setups() -> Vec<(&'static str, Setup)> {
    let mut setups = Vec::new();
    let mut add = |group, setup| setups.push((group, setup));
    for format in KvFormat::ALL {
        let mut setup = Setup::new(format, &[113], Pages::Contiguous);
        setup.split = 4;
        add("formats", setup);
        if ![KvFormat::F16, Int8, F8E4M3].contains(&format) {
            continue;
        }
        setup.dim = 128;
        setup.v_dim = 128;
        setup.heads = [4, 4];
        setup.out = F16;
        add("formats", setup);
    }
    // Rows that end within a block or an access, blocks of other sizes, keys unlike values.
    for (keys, values, dim, v_dim) in [
        (Int8, Int8, 40, 24),
        (Block8(16), Block8(64), 72, 80),
        (Block8(128), Int8, 256, 256),
        (F8E4M3, KvFormat::F16, 24, 8),
        (KvFormat::BF16, F8E5M2, 20, 36),
        (Int8, F8E4M3, 64, 64),
    ] {
        let mut setup = Setup::new(keys, &[31], Pages::Contiguous);
        setup.values = values;
        (setup.dim, setup.v_dim) = (dim, v_dim);
        setup.q_len = 2;
        add("formats", setup);
    }
    for (format, size) in [
        (KvFormat::F16, 1),
        (Int8, 16),
        (Block8(32), 17),
        (F8E4M3, 256),
    ] {
        for q_len in [1, 3] {
            let mut setup = Setup::new(format, &[339, 1, 17, 255, 0], Pages::Of(size));
            setup.q_len = q_len;
            setup.split = 48;
            add("pages", setup);
        }
    }
    let window = Mask::Window {
        left: 40,
        right: 0,
        sinks: 5,
    };
    for mask in [window, Mask::Full] {
        let mut setup = Setup::new(Int8, &[200, 30], Pages::Of(16));
        setup.mask = mask;
        setup.q_len = 4;
        add("pages", setup);
    }
    // A whole sequence a page, in pages out of order.
    let mut setup = Setup::new(KvFormat::F16, &[77], Pages::Of(77));
    setup.heads = [16, 1];
    setup.q_len = 16;
    add("pages", setup);
    for format in [KvFormat::F16, Block8(16)] {
        let mut setup = Setup::new(format, &[31], Pages::Contiguous);
        setup.ordered = true;
        add("order", setup);
    }
    for (format, pages) in [(KvFormat::F16, Pages::Contiguous), (Int8, Pages::Of(16))] {
        let mut setup = Setup::new(format, &[70, 23], pages);
        if pages == Pages::Contiguous {
            setup.lengths = &[70];
        }
        setup.modified = true;
        setup.q_len = 2;
        setup.split = 8;
        add("modified", setup);
    }
    // What the planner leaves to matrix units where there are some.
    for format in [Int8, F8E4M3, F8E5M2, Block8(32)] {
        let mut setup = Setup::new(format, &[113], Pages::Contiguous);
        setup.split = 4;
        setup.decoder = Decoder::Plain;
        add("plain", setup);
    }
    for setup in large() {
        add("large", setup);
    }
    for setup in emulated() {
        add("matrix units emulated", setup);
    }
    setups
}

/// flash-attention's grid of queries and keys in caches, in one piece and in pages of 256, on GPUs alone.
fn large() -> Vec<Setup> {
    const PAIRS: [(usize, &[usize]); 9] = [
        (1, &[128]),
        (1, &[339]),
        (3, &[1024]),
        (64, &[800]),
        (64, &[256]),
        (3, &[799]),
        (64, &[2048]),
        (16, &[20_000]),
        (128, &[128]),
    ];
    let mut setups = Vec::new();
    for (n, (q_len, lengths)) in PAIRS.into_iter().enumerate() {
        for (m, pages) in [Pages::Contiguous, Pages::Of(256)].into_iter().enumerate() {
            let format = [KvFormat::F16, Int8, F8E4M3, Block8(32)][(n + m) % 4];
            let mut setup = Setup::new(format, lengths, pages);
            (setup.q_len, setup.heads) = (q_len, [4, 2]);
            (setup.q, setup.out) = (F16, F16);
            setups.push(setup);
        }
    }
    setups
}

/// The kernel for matrix units on an emulation of these: formats, tiles of 8 and 16 rows, ragged channels, pages, masks.
fn emulated() -> Vec<Setup> {
    let base = FlashDecodeTuning::EMULATED;
    let make = |keys, values, [dim, v_dim]: [usize; 2], sizes| {
        let mut setup = Setup::new(keys, &[113], Pages::Contiguous);
        setup.values = values;
        (setup.dim, setup.v_dim) = (dim, v_dim);
        setup.decoder = Decoder::Emulated(sizes);
        setup.split = 4;
        setup
    };
    let wide = FlashDecodeTuning { keys: 32, ..base };
    let mut setups = Vec::new();
    for (keys, values, dims, sizes) in [
        (Int8, Int8, [32, 32], base),
        (F8E4M3, F8E4M3, [32, 32], wide),
        (Int8, Int8, [72, 40], wide),
        (F8E5M2, F8E5M2, [64, 48], base),
        (Block8(32), Block8(32), [64, 32], wide),
        (F8E5M2, Int8, [40, 24], base),
        (Block8(16), Block8(64), [72, 80], base),
        (Block8(16), Block8(16), [136, 20], base),
    ] {
        setups.push(make(keys, values, dims, sizes));
    }
    // Queries of 16 bits, in more rows than eight: heads of one key head, several queries, more than a tile.
    for (heads, q_len, q) in [
        ([4, 4], 1, F16),
        ([12, 1], 1, F16),
        ([8, 2], 5, F16),
        ([8, 2], 6, BF16),
    ] {
        let mut setup = make(Int8, Int8, [32, 32], base);
        (setup.heads, setup.q_len, setup.q, setup.out) = (heads, q_len, q, q);
        setups.push(setup);
    }
    for (format, size) in [(Int8, 16), (Block8(32), 17)] {
        let mut setup = Setup::new(format, &[239, 1, 17, 0], Pages::Of(size));
        (setup.dim, setup.v_dim) = (32, 32);
        setup.q_len = 3;
        setup.split = 48;
        setup.decoder = Decoder::Emulated(base);
        setups.push(setup);
    }
    let window = |left, sinks| Mask::Window {
        left,
        right: 0,
        sinks,
    };
    for mask in [window(40, 5), window(90, 17), Mask::Full, Mask::Prefix(20)] {
        let mut setup = Setup::new(Int8, &[200, 30], Pages::Of(32));
        (setup.dim, setup.v_dim) = (32, 32);
        setup.mask = mask;
        setup.q_len = 4;
        setup.decoder = Decoder::Emulated(base);
        setups.push(setup);
    }
    let mut setup = make(Block8(16), Int8, [32, 32], base);
    setup.ordered = true;
    setups.push(setup);
    let mut setup = make(Int8, Int8, [32, 32], base);
    setup.modified = true;
    setup.q_len = 3;
    setups.push(setup);
    setups
}

fn appends() -> Vec<Append> {
    let mut found = Vec::new();
    for format in KvFormat::ALL {
        let base = Append {
            format,
            from: F32,
            heads: 2,
            dim: 64,
            n: 5,
            lengths: &[9],
            pages: Pages::Contiguous,
            ordered: false,
        };
        found.push(base);
        found.push(Append {
            from: F16,
            dim: 40,
            n: 1,
            lengths: &[33, 7],
            pages: Pages::Of(8),
            ..base
        });
    }
    for (format, from, dim, ordered) in [
        (Block8(16), BF16, 256, false),
        (Block8(64), F32, 72, true),
        (Int8, F16, 13, false),
        (F8E4M3, F32, 128, true),
    ] {
        found.push(Append {
            format,
            from,
            heads: 3,
            dim,
            n: 2,
            lengths: &[2, 4],
            pages: Pages::Of(3),
            ordered,
        });
    }
    found
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for append in appends() {
        let name = format!("append {append:?}");
        cases.push(Case::new("cache", "append", name.clone(), move |ctx| {
            append.run(ctx, &name)
        }));
    }
    for (group, setup) in setups() {
        let name = setup.name();
        let case = Case::new("cache", group, name.clone(), move |ctx| {
            setup.run(ctx, &name)
        });
        cases.push(case.on_gpus(group == "large"));
    }
    cases
}

/// The launches of the cases.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for append in appends() {
        launches.push(append.launch(caps).expect("a valid append"));
    }
    for (_, setup) in setups() {
        let plan = setup.plan(caps).expect("a valid problem");
        launches.extend(plan.launches().cloned());
    }
    launches
}
