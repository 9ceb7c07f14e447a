//! Embedding: rows of a table by token id.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Invocations of a workgroup: few, so that one token's row spreads over the device.
const WORKGROUP: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    groups: u32,
    groups_per_row: u32,
    width: u32,
    vocab: u32,
    table_offset: u32,
    table_stride: u32,
    ids_offset: u32,
    y_offset: u32,
    y_stride: u32,
    first: u32,
    nan: u32,
}

/// Plans [`gather`]: `table` `[vocab, width]` and `out` `[tokens, width]` of f32, f16 or bf16, rows evenly spaced;
/// `ids` u32 `[tokens]`, contiguous.
pub fn plan(caps: &Capabilities, table: &Layout, ids: &Layout, out: &Layout) -> Result<Launch> {
    plan_from(caps, table, 0, ids, out)
}

/// As [`plan`], for the part of a table that begins at row `first` of it. Rows of `out` whose ids are not in the part
/// become NaN with the first part, and stay as they are with those after it.
fn plan_from(
    caps: &Capabilities,
    table: &Layout,
    first: usize,
    ids: &Layout,
    out: &Layout,
) -> Result<Launch> {
    let &[vocab, width] = table.shape() else {
        let was = format!("{table:?}");
        return Err(Error::argument(
            "table",
            was,
            "two dimensions, [vocab, width]",
        ));
    };
    table.require_float("table")?;
    out.require_float("out")?;
    ids.require_dtype("ids", DType::U32)?;
    if ids.rank() != 1 || !ids.is_contiguous() {
        return Err(Error::argument(
            "ids",
            format!("{ids:?}"),
            "one contiguous dimension",
        ));
    }
    let tokens = ids.len();
    out.require_shape("out", &[tokens, width])?;
    let (from, to) = (table.as_rows("table")?, out.as_rows("out")?);
    let wide = from.multiple_of(4) && to.multiple_of(4);
    let groups_per_row = width.div_ceil(4);
    let params = Params {
        groups: (tokens * groups_per_row) as u32,
        groups_per_row: groups_per_row as u32,
        width: width as u32,
        vocab: vocab as u32,
        table_offset: from.offset as u32,
        table_stride: from.stride as u32,
        ids_offset: ids.offset() as u32,
        y_offset: to.offset as u32,
        y_stride: to.stride as u32,
        first: first as u32,
        nan: outside(first),
    };
    let recipe = Recipe::new("embedding/gather")
        .with("TABLE", table.dtype())
        .with("Y", out.dtype())
        .with("VEC", if wide { 4 } else { 1 })
        .with("WG", WORKGROUP as u32);
    let grid = linear_grid(caps, (tokens * groups_per_row).div_ceil(WORKGROUP));
    Launch::new(caps, recipe, grid, &params)
}

/// Records `out[i] = table[ids[i]]`. A row whose id is not in the table becomes NaN; ids that come from the host go
/// through [`check_ids`] first.
/// The table may be of a quantised format.
pub fn gather(pass: &mut Pass<'_>, table: &Tensor, ids: &Tensor, out: &Tensor) -> Result<()> {
    gather_parts(pass, std::slice::from_ref(table), ids, out)
}

/// As [`gather`], from a table whose rows lie in several tensors of one type and width, one after the other: a dispatch
/// for each of them.
pub fn gather_parts(
    pass: &mut Pass<'_>,
    parts: &[Tensor],
    ids: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let mut first = 0;
    for part in parts {
        let (caps, layouts) = (
            pass.capabilities(),
            (part.layout(), ids.layout(), out.layout()),
        );
        let (table, listed, to) = layouts;
        if part.dtype().quant().is_some() {
            let launch = super::quant::plan_from(caps, table, first, Some(listed), to)?;
            pass.launch(&launch, &[part, out, ids])?;
        } else {
            let launch = plan_from(caps, table, first, listed, to)?;
            pass.launch(&launch, &[part, ids, out])?;
        }
        first += part.shape()[0];
    }
    Ok(())
}

/// The bits of what becomes of a row whose id is not in the part of a table that begins at row `first`: of the first
/// part NaN; zero says that the row stays as it is.
pub(super) fn outside(first: usize) -> u32 {
    match first {
        0 => f32::NAN.to_bits(),
        _ => 0,
    }
}

/// Errors if there is no id, or one that is not below `vocab`: the error names the first such and its place.
pub fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::argument("token ids", "none", "at least one"));
    }
    match ids.iter().position(|&id| id as usize >= vocab) {
        None => Ok(()),
        Some(at) => Err(Error::argument(
            "token id",
            format!("{} at place {at}", ids[at]),
            format!("ids below {vocab}, the size of the vocabulary"),
        )),
    }
}

/// The rows of `table` with these ids as a new tensor [ids, width] of type `dtype`. Errors if an id is not in the table.
pub fn lookup(table: &Tensor, ids: &[u32], dtype: DType) -> Result<Tensor> {
    let &[vocab, width] = table.shape() else {
        let was = format!("{table:?}");
        return Err(Error::argument(
            "table",
            was,
            "two dimensions, [vocab, width]",
        ));
    };
    check_ids(ids, vocab)?;
    let ctx = table.context();
    let ids_in = Tensor::from_slice(ctx, ids, [ids.len()])?;
    let out = Tensor::empty(ctx, dtype, [ids.len(), width])?;
    ctx.record(|pass| gather(pass, table, &ids_in, &out))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_arguments_are_named() {
        let caps = Capabilities::webgpu_default();
        let f = |shape: &[usize]| Layout::contiguous(DType::F32, shape).unwrap();
        let u = |shape: &[usize]| Layout::contiguous(DType::U32, shape).unwrap();
        let (table, ids, out) = (f(&[10, 6]), u(&[3]), f(&[3, 6]));
        assert!(plan(&caps, &table, &ids, &out).is_ok());
        for (table, ids, out, name) in [
            (&f(&[60]), &ids, &out, "table: "),
            (&u(&[10, 6]), &ids, &out, "table: u32"),
            (&table, &f(&[3]), &out, "ids: f32"),
            (&table, &u(&[3, 1]), &out, "ids: "),
            (&table, &u(&[4]), &out, "out: shape [3, 6]"),
            (&table, &ids, &f(&[3, 7]), "out: shape [3, 7]"),
            (&table, &ids, &u(&[3, 6]), "out: u32"),
        ] {
            let error = plan(&caps, table, ids, out).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(check_ids(&[0, 9], 10).is_ok());
        let message = check_ids(&[3, 10, 11], 10).unwrap_err().to_string();
        assert!(message.starts_with("token id: 10 at place 1"), "{message}");
        assert!(
            check_ids(&[], 10)
                .unwrap_err()
                .to_string()
                .starts_with("token ids: none")
        );
    }
}
