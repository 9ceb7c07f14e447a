//! Attention for one token over caches in every format, in one piece and in pages: bound by reading them.

use flashwave::DType::F16;
use flashwave::kernels::attention::{
    Attention, BlockTable, CacheArgs, DecodeTuning, FlashDecodeTuning, KvFormat, KvLayout, KvStore,
    Mask, Tokens, Tuning,
};
use flashwave::{Capabilities, Context, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// One call: 32 query heads over 8 key heads of 128 channels.
#[derive(Clone, Copy)]
struct Problem {
    format: KvFormat,
    batch: usize,
    keys: usize,
    /// Tokens of a page; in one piece if `None`.
    page: Option<usize>,
}

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;

fn problems(scale: Scale) -> Vec<Problem> {
    let mut found = Vec::new();
    let formats = [
        KvFormat::F16,
        KvFormat::Int8,
        KvFormat::F8E4M3,
        KvFormat::F8E5M2,
        KvFormat::Block8(32),
    ];
    for &keys in scale.pick(&[512, 2048, 8192, 16384, 131_072][..], &[256]) {
        for format in formats {
            found.push(Problem {
                format,
                batch: 1,
                keys,
                page: None,
            });
        }
    }
    let keys = scale.pick(4096, 64);
    for format in [KvFormat::F16, KvFormat::Int8] {
        for page in [None, Some(16), Some(256)] {
            found.push(Problem {
                format,
                batch: scale.pick(16, 2),
                keys,
                page,
            });
        }
    }
    found
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let all = problems(scale).into_iter();
    all.map(|p| row(caps, p, None)).collect()
}

/// Every tuning of the kernel for matrix units where it serves, beside the other one's default; else every one of that.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let mut rows = Vec::new();
    for p in problems(scale) {
        let default = Tuning {
            decode: DecodeTuning::cached(caps, p.format, p.format),
            ..Tuning::new(caps, DIM, DIM)
        };
        let flash = match p.format {
            KvFormat::F16 => Vec::new(),
            _ => FlashDecodeTuning::candidates(caps),
        };
        let plain = match flash[..] {
            [] => DecodeTuning::candidates(caps),
            _ => vec![default.decode],
        };
        let plain = plain.into_iter().map(|decode| (decode, None));
        let flash = flash.into_iter().map(|sizes| (default.decode, Some(sizes)));
        for (decode, flash_decode) in plain.chain(flash) {
            let tuning = Tuning {
                decode,
                flash_decode,
                ..default
            };
            rows.push(row(caps, p, Some(tuning)));
        }
    }
    rows
}

fn layout(p: Problem) -> Result<KvLayout> {
    let (pages, size) = match p.page {
        None => (p.batch, p.keys),
        Some(size) => (p.batch * p.keys.div_ceil(size), size),
    };
    KvLayout::new(p.format, pages, KV_HEADS, size, DIM)
}

fn row(caps: &Capabilities, p: Problem, tuning: Option<Tuning>) -> Row {
    let bytes = layout(p).map_or(0.0, |l| 2.0 * l.bytes() as f64);
    let count = sets(caps, bytes);
    let op = match tuning {
        Some(tuning) => Attention::new(Mask::Causal).tuning(tuning),
        None => Attention::new(Mask::Causal),
    };
    let page = p.page.map_or(String::new(), |n| format!(" pages of {n}"));
    let work = format!(
        "cached attention {} b{} h{HEADS}/{KV_HEADS} kv{} d{DIM}{page}",
        p.format, p.batch, p.keys
    );
    Row::memory("cache", work, bytes, move |ctx| prepare(ctx, p, op, count))
}

fn prepare(ctx: &Context, p: Problem, op: Attention, count: usize) -> Result<Prepared> {
    let layout = layout(p)?;
    let query = [p.batch, HEADS, 1, DIM];
    let table = match p.page {
        None => None,
        // Pages as an allocator hands them out after a while: far from each other.
        Some(_) => {
            let pages = layout.pages as u32;
            let blocks: Vec<u32> = (0..pages).map(|i| i * 7919 % pages).collect();
            let lengths = vec![p.keys as u32; p.batch];
            Some(BlockTable::new(ctx, &layout, &lengths, &blocks)?)
        }
    };
    let fill = |seed: usize| -> Result<KvStore> {
        let store = KvStore::empty(ctx, layout)?;
        let rows = random(ctx, F16, [p.batch, KV_HEADS, p.keys, DIM], seed)?;
        ctx.record(|pass| store.append(pass, &rows, tokens_of(&table, p.keys), None))?;
        Ok(store)
    };
    let sets = (0..count).map(|i| {
        Ok((
            random(ctx, F16, query, 3 * i)?,
            fill(3 * i + 1)?,
            fill(3 * i + 2)?,
            Tensor::empty(ctx, F16, query)?,
        ))
    });
    let sets = Sets {
        sets: sets.collect::<Result<_>>()?,
        table,
        keys: p.keys,
    };
    let plan = op.plan_cached(ctx.capabilities(), sets.args(0).layouts())?;
    Ok(Prepared::new(plan, move |pass, run| {
        op.run_cached(pass, sets.args(run))
    }))
}

/// Sets of inputs with the table that they share.
struct Sets {
    sets: Vec<(Tensor, KvStore, KvStore, Tensor)>,
    table: Option<BlockTable>,
    keys: usize,
}

impl Sets {
    fn args(&self, run: usize) -> CacheArgs<'_> {
        let (q, keys, values, out) = &self.sets[run % self.sets.len()];
        CacheArgs {
            q,
            keys,
            values,
            tokens: tokens_of(&self.table, self.keys),
            order: None,
            slopes: None,
            sink_logits: None,
            out,
            lse: None,
        }
    }
}

fn tokens_of(table: &Option<BlockTable>, keys: usize) -> Tokens<'_> {
    match table {
        Some(table) => Tokens::Paged(table),
        None => Tokens::Contiguous(keys),
    }
}
