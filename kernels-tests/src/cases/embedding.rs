//! Embedding: every pair of types, ragged widths, strided tables, ids at and beyond the ends.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::embedding;
use flashwave::reference::embedding::gather;
use flashwave::{Capabilities, DType, Launch, Layout, Result, Tensor};

use crate::Case;
use crate::inputs::{Random, poisoned, round};
use crate::tolerance::check_equal;

const TYPES: [DType; 3] = [F32, F16, BF16];

/// The correctness matrix: a gather is exact, and so is its rounding.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for table_type in TYPES {
        for y_type in TYPES {
            for (vocab, width, tokens) in [(7, 64, 1), (512, 17, 5), (33, 260, 9)] {
                let name = format!("[{vocab}, {width}] {table_type} -> {y_type}, {tokens} tokens");
                cases.push(Case::new("embedding", "gather", name.clone(), move |ctx| {
                    let mut random = Random::new(Case::seed(&name));
                    // The table is every second row of a taller one, from the second on.
                    let host = random.normals(vocab * 2 * width, table_type);
                    let whole = Tensor::from_f32(ctx, table_type, &host, [vocab, 2 * width])?;
                    let table = whole.narrow(1, width..2 * width)?;
                    let mut ids: Vec<u32> =
                        (0..tokens).map(|_| random.below(vocab) as u32).collect();
                    ids[0] = vocab as u32 - 1;
                    if tokens > 5 {
                        (ids[2], ids[4], ids[6]) = (vocab as u32, u32::MAX, 0);
                    }
                    // Ids in the middle of a longer list.
                    let padded = [&[u32::MAX], ids.as_slice(), &[0]].concat();
                    let list = Tensor::from_slice(ctx, &padded, [tokens + 2])?;
                    let ids_in = list.narrow(0, 1..tokens + 1)?;
                    let y = poisoned(ctx, y_type, [tokens, width])?;
                    ctx.record(|pass| embedding::gather(pass, &table, &ids_in, &y))?;
                    let rows: Vec<f32> = host
                        .chunks(width)
                        .skip(1)
                        .step_by(2)
                        .flatten()
                        .copied()
                        .collect();
                    // NaN is unlike itself: compared as bits, all NaNs as one.
                    let bits = |v: f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
                    let expected = gather(&rows, width, &ids)
                        .into_iter()
                        .map(|v| bits(round(v, y_type)));
                    let out: Vec<u32> = y.to_f32_vec()?.into_iter().map(bits).collect();
                    let outcome = check_equal(&out, &expected.collect::<Vec<u32>>())?;
                    // The same from tables one after the other.
                    let cuts = [0..vocab / 3, vocab / 3..vocab - 1, vocab - 1..vocab];
                    let parts = cuts.map(|rows| table.rows(rows));
                    let parts: Vec<Tensor> = parts.into_iter().collect::<Result<_>>()?;
                    let split = poisoned(ctx, y_type, [tokens, width])?;
                    ctx.record(|pass| embedding::gather_parts(pass, &parts, &ids_in, &split))?;
                    Ok(outcome.and(check_equal(&split.to_bytes()?, &y.to_bytes()?)?))
                }));
            }
        }
    }
    cases
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for table in TYPES {
        for y in TYPES {
            for width in [64, 33] {
                let found = (|| {
                    let table = Layout::contiguous(table, [100, width])?;
                    let ids = Layout::contiguous(DType::U32, [9])?;
                    let y = Layout::contiguous(y, [9, width])?;
                    embedding::plan(caps, &table, &ids, &y)
                })();
                launches.push(found.expect("plans"));
            }
        }
    }
    launches
}
