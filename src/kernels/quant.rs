//! Quantised matrices on the device: what kernels that read them are told, and expanding them.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::quant::{Group, QuantLayout, Scale, Zero, writable};
use crate::recipe::{Constant, Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// The fields of `fields` in shaders/lib/quant.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct QuantParams {
    row: u32,
    high: u32,
    high_row: u32,
    scales: u32,
    groups: u32,
    group_rows: u32,
    outer: u32,
    outer_row: u32,
}

impl QuantParams {
    pub(crate) fn of(layout: &QuantLayout) -> Self {
        let group_rows = match layout.format.group {
            Group::Tensor => u32::MAX,
            Group::Row | Group::Along(_) => 1,
            Group::Block(rows, _) => rows,
        };
        Self {
            row: (layout.low_row() / 4) as u32,
            high: layout.high_at() as u32,
            high_row: layout.high_row() as u32,
            scales: layout.scales_at() as u32,
            groups: layout.groups_per_row() as u32,
            group_rows,
            outer: layout.outer_at() as u32,
            outer_row: layout.outer_per_row() as u32,
        }
    }
}

/// The constants that shaders/lib/quant.wgsl is used with.
pub(crate) fn constants(recipe: Recipe, layout: &QuantLayout) -> Recipe {
    let format = layout.format;
    let group = match format.group {
        Group::Tensor | Group::Row => 0,
        Group::Along(n) | Group::Block(_, n) => n,
    };
    let (scale, outer) = match format.scale {
        Scale::F32 => ("f32", 0),
        Scale::F16 => ("f16", 0),
        Scale::E8M0 => ("e8m0", 0),
        Scale::ByteF32(groups) => ("byte_f32", groups),
        Scale::ByteF16(groups) => ("byte_f16", groups),
    };
    let zero = match format.zero {
        Zero::None => "none",
        Zero::Point => "point",
        Zero::Min => "min",
        Zero::NegatedMin => "negated_min",
    };
    recipe
        .with("CODE", format.code.name())
        .with("LOW", format.code.low_bits())
        .with("HIGH", format.code.high_bits())
        .with("GROUP", group)
        .with("SCALE", scale)
        .with("OUTER", outer)
        .with("ZERO", zero)
}

/// Units of a row that an invocation expands.
const WORKGROUP: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    units: u32,
    units_per_row: u32,
    cols: u32,
    rows: u32,
    ids_offset: u32,
    y_offset: u32,
    y_stride: u32,
    first_id: u32,
    nan: u32,
    w: QuantParams,
}

/// Plans [`dequantize`] or, with the layout of `ids` (u32 \[rows\], contiguous), what
/// [`embedding::gather`](super::embedding::gather) records.
pub fn plan(
    caps: &Capabilities,
    matrix: &Layout,
    ids: Option<&Layout>,
    out: &Layout,
) -> Result<Launch> {
    plan_from(caps, matrix, 0, ids, out)
}

/// As [`plan`], for the part of a table that begins at row `first` of it.
pub(super) fn plan_from(
    caps: &Capabilities,
    matrix: &Layout,
    first: usize,
    ids: Option<&Layout>,
    out: &Layout,
) -> Result<Launch> {
    let Some(quant) = matrix.quant() else {
        let was = format!("{matrix:?}");
        return Err(Error::argument("matrix", was, "a quantised format"));
    };
    out.require_float("out")?;
    if let Some(ids) = ids {
        ids.require_dtype("ids", DType::U32)?;
        if ids.rank() != 1 || !ids.is_contiguous() {
            let was = format!("{ids:?}");
            return Err(Error::argument("ids", was, "one contiguous dimension"));
        }
    }
    let rows = ids.map_or(quant.rows, Layout::len);
    out.require_shape("out", &[rows, quant.cols])?;
    let to = out.as_rows("out")?;
    let units_per_row = quant.padded_cols() / quant.unit();
    let units = rows * units_per_row;
    let params = Params {
        units: units as u32,
        units_per_row: units_per_row as u32,
        cols: quant.cols as u32,
        rows: quant.rows as u32,
        ids_offset: ids.map_or(0, |l| l.offset() as u32),
        y_offset: to.offset as u32,
        y_stride: to.stride as u32,
        first_id: first as u32,
        nan: super::embedding::outside(first),
        w: QuantParams::of(&quant),
    };
    let ids = if ids.is_some() { "listed" } else { "all" };
    let recipe = constants(Recipe::new("quant/dequantize"), &quant)
        .with("Y", out.dtype())
        .with("VEC", if to.multiple_of(4) { 4 } else { 1 })
        .with("ROWS", Constant::Name(ids))
        .with("WG", WORKGROUP as u32);
    let grid = linear_grid(caps, units.div_ceil(WORKGROUP));
    Launch::new(caps, recipe, grid, &params)
}

/// Records out = the numbers that a quantised `matrix` means: `[rows, cols]` of f32, f16 or bf16.
pub fn dequantize(pass: &mut Pass<'_>, matrix: &Tensor, out: &Tensor) -> Result<()> {
    let launch = plan(pass.capabilities(), matrix.layout(), None, out.layout())?;
    pass.launch(&launch, &[matrix, out])
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QuantizeParams {
    rows: u32,
    cols: u32,
    padded: u32,
    x_offset: u32,
    x_stride: u32,
    across: u32,
    groups: u32,
    group_rows: u32,
    group_cols: u32,
    row: u32,
    high: u32,
    high_row: u32,
    scales: u32,
    outer: u32,
    outer_row: u32,
    most: f32,
    inverse: f32,
    inverse_outer: f32,
}

/// Plans [`quantize`]: `x` `[rows, cols]` of f32, f16 or bf16, rows evenly spaced; `matrix` of a format that is written, in
/// groups of whole 32 elements.
pub fn plan_quantize(caps: &Capabilities, x: &Layout, matrix: &Layout) -> Result<Launch> {
    let Some(quant) = matrix.quant() else {
        let was = format!("{matrix:?}");
        return Err(Error::argument("matrix", was, "a quantised format"));
    };
    let format = quant.format;
    writable(format)?;
    if matches!(format.group, Group::Along(n) if n < 32) {
        return Err(Error::argument(
            "matrix",
            format,
            "groups of whole 32 elements",
        ));
    }
    x.require_float("x")?;
    x.require_shape("x", &[quant.rows, quant.cols])?;
    let from = x.as_rows("x")?;
    let [group_rows, group_cols] = format.group_size([quant.rows, quant.cols]);
    let most = format.code.largest();
    let steps = if format.zero == Zero::None {
        most
    } else {
        most + most + 1.0
    };
    let params = QuantizeParams {
        rows: quant.rows as u32,
        cols: quant.cols as u32,
        padded: quant.padded_cols() as u32,
        x_offset: from.offset as u32,
        x_stride: from.stride as u32,
        across: quant.groups_per_row() as u32,
        groups: quant.groups() as u32,
        group_rows: group_rows as u32,
        group_cols: group_cols as u32,
        row: (quant.low_row() / 4) as u32,
        high: quant.high_at() as u32,
        high_row: quant.high_row() as u32,
        scales: quant.scales_at() as u32,
        outer: quant.outer_at() as u32,
        outer_row: quant.outer_per_row() as u32,
        most,
        inverse: 1.0 / steps,
        inverse_outer: 1.0 / (127.0 * most),
    };
    let alone = matches!(format.group, Group::Along(n) if n <= 512);
    let (by, workgroups) = match (alone, quant.outer_per_row()) {
        (false, _) => ("workgroup", quant.groups()),
        (true, 0) => ("group", quant.groups().div_ceil(WORKGROUP)),
        (true, outer) => ("group", quant.rows * outer),
    };
    let recipe = constants(Recipe::new("quant/quantize"), &quant)
        .with("X", x.dtype())
        .with("BY", by)
        .with("WG", WORKGROUP as u32);
    Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
}

/// Records matrix = x in the matrix's format: the same bits as [`crate::quant::quantize`] gives.
pub fn quantize(pass: &mut Pass<'_>, x: &Tensor, matrix: &Tensor) -> Result<()> {
    let launch = plan_quantize(pass.capabilities(), x.layout(), matrix.layout())?;
    pass.launch(&launch, &[x, matrix])
}
