// Softmax or log-softmax over the last dimension of v = scale * x + mask.
//
// x, y: `rows` rows of `cols` adjacent elements, each with an offset and a distance between rows. mask: rows alike, the
// row of x being taken modulo `mask_rows`. The row's maximum is subtracted first, so that nothing overflows. A row that is
// -inf throughout gives zeros, and log-softmax -inf.
//
// One workgroup a row with ROWS 1, otherwise TEAM invocations a row and ROWS rows a workgroup. A row of at most
// 4 * TEAM * UNROLL elements is read once and stays in registers, with VEC 8 in 16-byte accesses of 16-bit types; UNROLL 0 reads it twice, the first time with the online
// sum (arXiv 1805.02867): every invocation keeps the maximum so far and the sum relative to it.
#import "lib/tensor.wgsl" as t
#import "lib/reduce.wgsl" as reduce

struct Params {
    rows: u32,
    cols: u32,
    groups: u32,
    x_offset: u32,
    x_stride: u32,
    mask_offset: u32,
    mask_stride: u32,
    mask_rows: u32,
    y_offset: u32,
    y_stride: u32,
    scale: f32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, VEC) }
#if MASK != "none"
${ t.input(2, "mask", MASK, VEC) }
#endif
${ t.output(3, "y", Y, VEC) }
${ reduce.scratch(REDUCE, TEAM * ROWS) }
${ reduce.function("sum", REDUCE, TEAM * ROWS, TEAM) }
${ reduce.function("max", REDUCE, TEAM * ROWS, TEAM) }

// The least finite f32: where all is -inf, -inf minus it is still -inf, not NaN.
const LOWEST: f32 = -3.4028234663852886e38;

// Elements of the row from group `g` (of four) on.
fn width(g: u32) -> u32 { return min(p.cols - g * 4u, 4u); }

#if VEC == 8
fn take(row: u32, g: u32) -> Eight {
    let x = load8_x(p.x_offset + row * p.x_stride + g * 4u);
    var v = Eight(x.low * p.scale, x.high * p.scale);
    #if MASK != "none"
    let mask = load8_mask(p.mask_offset + (row % p.mask_rows) * p.mask_stride + g * 4u);
    v = Eight(v.low + mask.low, v.high + mask.high);
    #endif
    return v;
}
#else
fn take(row: u32, g: u32) -> vec4<f32> {
    let n = width(g);
    var v = load_some_x(p.x_offset + row * p.x_stride + g * 4u, n) * p.scale;
    #if MASK != "none"
    v += load_some_mask(p.mask_offset + (row % p.mask_rows) * p.mask_stride + g * 4u, n);
    #endif
    return v;
}
#endif

// The greatest element of a group; what is beyond the row's end does not count.
fn greatest(v: vec4<f32>, g: u32) -> f32 {
    #if VEC == 1
    let w = select(vec4<f32>(LOWEST), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width(g)));
    return max(max(w.x, w.y), max(w.z, w.w));
    #else
    return max(max(v.x, v.y), max(v.z, v.w));
    #endif
}

fn sum_of_exps(v: vec4<f32>, g: u32, top: f32) -> f32 {
    var e = exp(v - top);
    #if VEC == 1
    e = select(vec4<f32>(), e, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width(g)));
    #endif
    return (e.x + e.y) + (e.z + e.w);
}

fn result(v: vec4<f32>, top: f32, total: f32) -> vec4<f32> {
    #if KIND == "log"
    // A sum of zero means that v is -inf, which is the result.
    return select(v - top - log(total), v, vec4<bool>(total == 0.0));
    #else
    return exp(v - top) * select(1.0 / total, 0.0, total == 0.0);
    #endif
}

@compute @workgroup_size(${TEAM * ROWS})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    ${ reduce.arguments(REDUCE) }
) {
    ${ reduce.begin(REDUCE) }
    let lane = ${ reduce.lane(REDUCE, "index", TEAM * ROWS, TEAM) };
    let member = lane & ${TEAM - 1}u;
    let row = (workgroup.y * grid.x + workgroup.x) * ${ROWS}u + lane / ${TEAM}u;
    // Teams beyond the last row come along to the barriers with nothing to do.
    let groups = select(0u, p.groups, row < p.rows);
    var own_top = LOWEST;
    var own_total = 0.0;
#if UNROLL > 0
    // All loads first, so that they are in flight together.
    #for u in range(0, UNROLL, 2 if VEC == 8 else 1)
    #if VEC == 8
    let g${u} = (member + ${u // 2 * TEAM}u) * 2u;
    let g${u + 1} = g${u} + 1u;
    var v${u} = vec4<f32>(LOWEST);
    var v${u + 1} = vec4<f32>(LOWEST);
    if g${u} < groups {
        let v = take(row, g${u});
        v${u} = v.low;
        v${u + 1} = v.high;
    }
    #else
    let g${u} = member + ${u * TEAM}u;
    var v${u} = vec4<f32>(LOWEST);
    if g${u} < groups { v${u} = take(row, g${u}); }
    #endif
    #endfor
    #for u in range(UNROLL)
    own_top = max(own_top, greatest(v${u}, g${u}));
    #endfor
    let top = workgroup_max(own_top, lane);
    #for u in range(UNROLL)
    if g${u} < groups { own_total += sum_of_exps(v${u}, g${u}, top); }
    #endfor
    let total = workgroup_sum(own_total, lane);
    let y = p.y_offset + row * p.y_stride;
    #for u in range(0, UNROLL, 2 if VEC == 8 else 1)
    #if VEC == 8
    if g${u} < groups { store8_y(y + g${u} * 4u, result(v${u}, top, total), result(v${u + 1}, top, total)); }
    #else
    if g${u} < groups { store_some_y(y + g${u} * 4u, width(g${u}), result(v${u}, top, total)); }
    #endif
    #endfor
#else
    for (var g = member; g < groups; g += ${TEAM}u) {
        let v = take(row, g);
        let higher = max(own_top, greatest(v, g));
        own_total = own_total * exp(own_top - higher) + sum_of_exps(v, g, higher);
        own_top = higher;
    }
    let top = workgroup_max(own_top, lane);
    let total = workgroup_sum(own_total * exp(own_top - top), lane);
    let y = p.y_offset + row * p.y_stride;
    for (var g = member; g < groups; g += ${TEAM}u) {
        store_some_y(y + g * 4u, width(g), result(take(row, g), top, total));
    }
#endif
}
