//! Bad caches, block tables and orders are errors that name the argument: no GPU needed.

use flashwave::DType::{F16, F32};
use flashwave::kernels::attention::{
    Attention, AttentionPlan, BlockLayout, CacheLayouts, KvFormat, KvLayout, Mask, TokenLayout,
    plan_append,
};
use flashwave::{Capabilities, Error, Layout, Result};

fn layout(shape: &[usize]) -> Layout {
    Layout::contiguous(F32, shape).expect("a layout")
}

fn cache(format: KvFormat, pages: usize, page_size: usize) -> KvLayout {
    KvLayout::new(format, pages, 2, page_size, 16).expect("a layout")
}

fn argument<T: std::fmt::Debug>(result: Result<T>) -> (String, String) {
    match result {
        Err(Error::Argument { name, allowed, .. }) => (name, allowed),
        other => panic!("an argument error, not {other:?}"),
    }
}

/// Two sequences, eight query heads over two key heads.
fn plan_for(q: [usize; 4], change: impl FnOnce(&mut CacheLayouts<'_>)) -> Result<AttentionPlan> {
    let q = layout(&q);
    let mut layouts = CacheLayouts {
        q: &q,
        keys: cache(KvFormat::Int8, 2, 64),
        values: cache(KvFormat::F8E4M3, 2, 64),
        tokens: TokenLayout::Contiguous(50),
        ordered: false,
        slopes: None,
        sink_logits: None,
        out: &q,
        lse: None,
    };
    change(&mut layouts);
    Attention::new(Mask::Causal).plan_cached(&Capabilities::webgpu_default(), layouts)
}

fn plan(change: impl FnOnce(&mut CacheLayouts<'_>)) -> Result<AttentionPlan> {
    plan_for([2, 8, 3, 16], change)
}

/// As [`plan`], in pages, with slopes, sinks and logarithms.
fn plan_modified(
    slopes: Option<&Layout>,
    sinks: Option<&Layout>,
    lse: Option<&Layout>,
) -> Result<AttentionPlan> {
    let q = layout(&[2, 8, 3, 16]);
    let layouts = CacheLayouts {
        q: &q,
        keys: cache(KvFormat::Int8, 2, 64),
        values: cache(KvFormat::F8E4M3, 2, 64),
        tokens: TokenLayout::Paged(BlockLayout {
            batch: 2,
            blocks: 1,
            pages: 2,
            page_size: 64,
            longest: 50,
        }),
        ordered: false,
        slopes,
        sink_logits: sinks,
        out: &q,
        lse,
    };
    Attention::new(Mask::Causal).plan_cached(&Capabilities::webgpu_default(), layouts)
}

#[test]
fn formats_and_sizes() {
    for block in [0, 8, 24, 129, 256] {
        let made = KvLayout::new(KvFormat::Block8(block), 1, 1, 1, 64);
        assert_eq!(argument(made).0, "format");
    }
    assert_eq!(
        argument(KvLayout::new(KvFormat::F16, 1, 0, 1, 64)).0,
        "cache"
    );
    let huge = KvLayout::new(KvFormat::Int8, 1 << 20, 8, 256, 128);
    assert_eq!(argument(huge).0, "cache");
    // 16 codes and a scale; eight channels of f16 and their padding.
    assert_eq!(cache(KvFormat::Int8, 1, 3).bytes(), 2 * 3 * (16 + 4));
    let ragged = KvLayout::new(KvFormat::F16, 1, 1, 3, 9).expect("a layout");
    assert_eq!(ragged.bytes(), 3 * 32);
}

#[test]
fn block_tables_name_the_entry_outside_the_pool() {
    let pool = cache(KvFormat::F16, 6, 16);
    let made = |lengths: &[u32], blocks: &[u32]| BlockLayout::new(&pool, lengths, blocks);
    let unused = u32::MAX;
    let fine = made(&[17, 16, 0], &[5, 0, 3, unused, unused, unused]).expect("a table");
    assert_eq!((fine.batch, fine.blocks, fine.longest), (3, 2, 17));
    let (name, allowed) = argument(made(&[32, 17], &[0, 1, 2, 6]));
    assert_eq!(name, "blocks[1][1]");
    assert!(allowed.contains("less than 6"), "{allowed}");
    assert_eq!(argument(made(&[33], &[0, 1])).0, "lengths[0]");
    assert_eq!(argument(made(&[1, 1], &[0, 1, 2])).0, "blocks");
    assert_eq!(argument(made(&[], &[])).0, "blocks");
}

#[test]
fn caches_and_queries_have_to_fit() {
    assert!(plan(|_| ()).is_ok());
    assert_eq!(
        argument(plan(|l| l.tokens = TokenLayout::Contiguous(65))).0,
        "tokens"
    );
    assert_eq!(
        argument(plan(|l| l.keys = cache(KvFormat::F16, 3, 64))).0,
        "keys"
    );
    assert_eq!(
        argument(plan(|l| l.values = cache(KvFormat::F16, 2, 65))).0,
        "values"
    );
    let paged = |batch, pages, page_size| {
        TokenLayout::Paged(BlockLayout {
            batch,
            blocks: 1,
            pages,
            page_size,
            longest: 3,
        })
    };
    assert!(plan(|l| l.tokens = paged(2, 2, 64)).is_ok());
    assert_eq!(argument(plan(|l| l.tokens = paged(3, 2, 64))).0, "blocks");
    assert_eq!(argument(plan(|l| l.tokens = paged(2, 9, 64))).0, "keys");
    assert_eq!(argument(plan_for([2, 7, 3, 16], |_| ())).0, "k");
    assert_eq!(argument(plan_for([2, 8, 3, 8], |_| ())).0, "k");
}

#[test]
fn modifiers_have_to_fit() {
    let a_head = layout(&[8]);
    let lse = layout(&[2, 8, 3]);
    assert!(plan_modified(Some(&a_head), Some(&a_head), None).is_ok());
    let two = layout(&[2]);
    let made = plan_modified(Some(&two), None, None);
    assert_eq!(argument(made).0, "slopes");
    // Eight buffers: with a table, one too many.
    let made = plan_modified(Some(&a_head), Some(&a_head), Some(&lse));
    let (name, allowed) = argument(made);
    assert_eq!(name, "lse");
    assert!(allowed.contains("at most 6 tensors"), "{allowed}");
}

#[test]
fn rows_to_append_have_to_fit() {
    let caps = Capabilities::webgpu_default();
    let pool = cache(KvFormat::Int8, 2, 64);
    let append = |shape: &[usize], tokens| {
        plan_append(
            &caps,
            &layout(shape),
            &pool,
            TokenLayout::Contiguous(tokens),
            false,
        )
    };
    assert!(append(&[2, 2, 3, 16], 3).is_ok());
    assert_eq!(argument(append(&[2, 2, 3, 16], 2)).0, "rows");
    assert_eq!(argument(append(&[2, 3, 3, 16], 9)).0, "rows");
    assert_eq!(argument(append(&[2, 2, 3, 8], 9)).0, "rows");
    assert_eq!(argument(append(&[2, 3, 16], 9)).0, "rows");
    assert_eq!(argument(append(&[1, 2, 3, 16], 9)).0, "cache");
    let halves = Layout::contiguous(F16, [2, 2, 16, 3])
        .expect("a layout")
        .transpose(2, 3)
        .expect("a view");
    let plan = plan_append(&caps, &halves, &pool, TokenLayout::Contiguous(9), false);
    assert_eq!(argument(plan).0, "rows");
}
