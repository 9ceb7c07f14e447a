// The weights that meet A's outliers: apart[n, s] = codes[n, columns[1 + s]] as f16, exact, up to the next multiple of 64
// columns zeros.
//
// codes: rows of int8, a multiple of four, `stride` apart; apart: words of two, `apart_stride` vectors of eight from row to row. An
// invocation has one word.
#import "lib/tensor.wgsl" as t

struct Params {
    rows: u32,
    offset: u32,
    stride: u32,
    apart_stride: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "codes", "u32") }
${ t.words(2, "columns", "u32") }
${ t.words(3, "apart", "u32", "read_write") }

fn code(row: u32, slot: u32, count: u32) -> f32 {
    if slot >= count { return 0.0; }
    let at = p.offset + row * p.stride + columns[1u + slot];
    return f32(unpack4xI8(codes[at / 4u])[at % 4u]);
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let count = min(columns[0], p.apart_stride * 8u);
    let words = (count + 63u) / 64u * 32u;
    let first = (workgroup.y * grid.x + workgroup.x) * ${ROWS}u;
    for (var i = lane; i < words * ${ROWS}u; i += ${WG}u) {
        let row = first + i / words;
        let s = i % words;
        if row < p.rows {
            apart[row * p.apart_stride * 4u + s] = pack2x16float(vec2<f32>(code(row, 2u * s, count), code(row, 2u * s + 1u, count)));
        }
    }
}
