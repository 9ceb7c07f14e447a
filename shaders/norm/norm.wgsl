// y = normalised(h) * weight + bias over the last dimension, h = x or x + add:
//   rms    h / sqrt(mean(h^2) + eps)                        (RMSNorm, arXiv 1910.07467)
//   layer  (h - mean(h)) / sqrt(var(h) + eps)               (LayerNorm, arXiv 1607.06450)
//
// x, add, sum, y: `rows` rows of `cols` adjacent elements, each tensor with an offset and a distance between rows;
// weight, bias: [cols]. RESIDUAL none: h = x; in_place: x becomes x + add; into: sum = x + add. A row in
// registers is normalised as it was summed, in f32; one that is read again, as it was stored.
//
// TEAM invocations handle a row, ROWS rows a workgroup. A row of at most 4 * TEAM * UNROLL elements is read once and
// stays in registers, with VEC 8 in 16-byte accesses of 16-bit types; UNROLL 0 reads it again for every pass over it. A
// weight is read before the reduction where registers suffice (EARLY), so that its latency hides behind the row's. The variance is the mean of squares of h - mean
// (two passes), never a difference of large numbers.
//
// Dropped: rounding a sum in registers as its storage will, which costs instructions, is less exact, and is not kept by
// drivers that fold the unpacking of what was packed. Welford's update in one pass, which divides for every element and saves nothing where the row is in registers.
#import "lib/tensor.wgsl" as t
#import "lib/reduce.wgsl" as reduce

struct Params {
    rows: u32,
    cols: u32,
    groups: u32,
    x_offset: u32,
    x_stride: u32,
    add_offset: u32,
    add_stride: u32,
    sum_offset: u32,
    sum_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    y_offset: u32,
    y_stride: u32,
    eps: f32,
}
${ t.params(PARAMS) }
${ t.prelude() }
#if RESIDUAL == "in_place"
${ t.inout(1, "x", X, VEC) }
#else
${ t.input(1, "x", X, VEC) }
#endif
#if RESIDUAL != "none"
${ t.input(2, "add", ADD, VEC) }
#endif
#if RESIDUAL == "into"
${ t.inout(3, "sum", SUM, VEC) }
#endif
#if WEIGHT != "none"
${ t.input(4, "weight", WEIGHT, VEC) }
#endif
#if BIAS != "none"
${ t.input(5, "bias", BIAS, VEC) }
#endif
${ t.output(6, "y", Y, VEC) }
${ reduce.scratch(REDUCE, TEAM * ROWS) }
${ reduce.function("sum", REDUCE, TEAM * ROWS, TEAM) }
#set H = "sum" if RESIDUAL == "into" else "x"
#set EARLY = WEIGHT != "none" and UNROLL > 0 and UNROLL <= 8
<# Groups of an access. #>
#set STEP = 2 if VEC == 8 else 1

// Elements of the row from group `g` (of four) on.
fn width(g: u32) -> u32 { return min(p.cols - g * 4u, 4u); }

#if VEC == 8
fn take(row: u32, g: u32) -> Eight {
    var h = load8_x(p.x_offset + row * p.x_stride + g * 4u);
    #if RESIDUAL != "none"
    let add = load8_add(p.add_offset + row * p.add_stride + g * 4u);
    h = Eight(h.low + add.low, h.high + add.high);
    store8_${H}(p.${H}_offset + row * p.${H}_stride + g * 4u, h.low, h.high);
    #endif
    return h;
}

fn weights(g: u32) -> Eight {
    #if WEIGHT == "none"
    return Eight(vec4<f32>(1.0), vec4<f32>(1.0));
    #else
    return load8_weight(p.weight_offset + g * 4u);
    #endif
}

fn put(row: u32, g: u32, normalised: Eight, weight: Eight) {
    var y = Eight(normalised.low * weight.low, normalised.high * weight.high);
    #if BIAS != "none"
    let bias = load8_bias(p.bias_offset + g * 4u);
    y = Eight(y.low + bias.low, y.high + bias.high);
    #endif
    store8_y(p.y_offset + row * p.y_stride + g * 4u, y.low, y.high);
}
#else
// h, written where it is a sum.
fn take(row: u32, g: u32) -> vec4<f32> {
    let n = width(g);
    var h = load_some_x(p.x_offset + row * p.x_stride + g * 4u, n);
    #if RESIDUAL != "none"
    h += load_some_add(p.add_offset + row * p.add_stride + g * 4u, n);
    store_some_${H}(p.${H}_offset + row * p.${H}_stride + g * 4u, n, h);
    #endif
    return h;
}

// h again, after this invocation's `take`.
fn again(row: u32, g: u32) -> vec4<f32> {
    return load_some_${H}(p.${H}_offset + row * p.${H}_stride + g * 4u, width(g));
}

fn weights(g: u32) -> vec4<f32> {
    #if WEIGHT == "none"
    return vec4<f32>(1.0);
    #else
    return load_some_weight(p.weight_offset + g * 4u, width(g));
    #endif
}

fn put(row: u32, g: u32, normalised: vec4<f32>, weight: vec4<f32>) {
    let n = width(g);
    var y = normalised * weight;
    #if BIAS != "none"
    y += load_some_bias(p.bias_offset + g * 4u, n);
    #endif
    store_some_y(p.y_offset + row * p.y_stride + g * 4u, n, y);
}
#endif

// h - mean, zero beyond the row's end.
fn centred(h: vec4<f32>, g: u32, mean: f32) -> vec4<f32> {
    #if VEC == 1
    return select(vec4<f32>(), h - mean, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width(g)));
    #else
    return h - mean;
    #endif
}

fn across(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

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
    let cols = f32(p.cols);
    var total = vec4<f32>();
#if UNROLL > 0
    #for u in range(0, UNROLL, STEP)
    #if VEC == 8
    let g${u} = (member + ${u // 2 * TEAM}u) * 2u;
    let g${u + 1} = g${u} + 1u;
    var h${u} = vec4<f32>();
    var h${u + 1} = vec4<f32>();
    if g${u} < groups {
        let h = take(row, g${u});
        h${u} = h.low;
        h${u + 1} = h.high;
    }
    #else
    let g${u} = member + ${u * TEAM}u;
    var h${u} = vec4<f32>();
    if g${u} < groups { h${u} = take(row, g${u}); }
    #endif
    #endfor
    #if EARLY
    #for u in range(0, UNROLL, STEP)
    var w${u}: ${"Eight" if VEC == 8 else "vec4<f32>"};
    if g${u} < groups { w${u} = weights(g${u}); }
    #endfor
    #endif
    #if KIND == "layer"
    #for u in range(UNROLL)
    total += h${u};
    #endfor
    let mean = workgroup_sum(across(total), lane) / cols;
    total = vec4<f32>();
    #for u in range(UNROLL)
    if g${u} < groups { h${u} = centred(h${u}, g${u}, mean); }
    #endfor
    #endif
    #for u in range(UNROLL)
    total += h${u} * h${u};
    #endfor
    let scale = inverseSqrt(workgroup_sum(across(total), lane) / cols + p.eps);
    #for u in range(0, UNROLL, STEP)
    #set normalised = "Eight(h" ~ u ~ " * scale, h" ~ (u + 1) ~ " * scale)" if VEC == 8 else "h" ~ u ~ " * scale"
    if g${u} < groups { put(row, g${u}, ${normalised}, ${"w" ~ u if EARLY else "weights(g" ~ u ~ ")"}); }
    #endfor
#else
    #if KIND == "layer"
    for (var g = member; g < groups; g += ${TEAM}u) { total += take(row, g); }
    let mean = workgroup_sum(across(total), lane) / cols;
    total = vec4<f32>();
    for (var g = member; g < groups; g += ${TEAM}u) {
        let h = centred(again(row, g), g, mean);
        total += h * h;
    }
    #else
    for (var g = member; g < groups; g += ${TEAM}u) {
        let h = take(row, g);
        total += h * h;
    }
    #endif
    let scale = inverseSqrt(workgroup_sum(across(total), lane) / cols + p.eps);
    for (var g = member; g < groups; g += ${TEAM}u) {
        #if KIND == "layer"
        put(row, g, centred(again(row, g), g, mean) * scale, weights(g));
        #else
        put(row, g, again(row, g) * scale, weights(g));
        #endif
    }
#endif
}
