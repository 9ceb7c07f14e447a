// Rows of numbers as int8 codes: x[row, k] = scale[row] * (code[row, k] - zero[row]), rounded to nearest, ties to even.
// NORM: of x[row, k] weight[k] / sqrt(mean(x^2) + eps) instead (RMSNorm, arXiv 1910.07467).
//
// SYMMETRY "symmetric": scale = max |x| / 127, zero = 0. "asymmetric": scale = (max(x, 0) - min(x, 0)) / 255, zero the code of
// which `min` becomes -128. Scales are rounded up to 11 significant bits (lib/code8.wgsl). ZEROS: zero and the sum of the
// row's codes are written. A row that is not finite has scale NaN and codes 0.
//
// APART: columns that are outliers (slots[k] > 0) do not count and have code 0; their numbers go to apart[row, slot - 1] as f16,
// up to the next multiple of 64 columns zeros: LLM.int8() (arXiv 2208.07339).
//
// x: `rows` rows of `cols` adjacent elements; codes: words of four, `code_stride` words from row to row. A workgroup of WG has a
// row, in registers where it is at most 4 * WG * UNROLL long; UNROLL 0 reads it again for each pass.
//
// 8192 x 8192 of f16 on an H100: 109 us, 1.85 TB/s, 60% of read. Rounding each number by comparisons with both half steps
// instead of with what is left of it: 141 us.
#import "lib/tensor.wgsl" as t
#import "lib/reduce.wgsl" as reduce
#import "lib/code8.wgsl" as code8

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    weight_offset: u32,
    eps: f32,
    code_offset: u32,
    code_stride: u32,
    scale_offset: u32,
    zero_offset: u32,
    apart_stride: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, VEC) }
#if NORM != "none"
${ t.input(2, "weight", NORM, VEC) }
#endif
${ t.words(3, "codes", "u32", "read_write") }
${ t.words(4, "scales", "f32", "read_write") }
#if ZEROS == 1
${ t.words(5, "zeros", "i32", "read_write") }
#endif
#if APART == 1
${ t.words(6, "columns", "u32") }
${ t.words(7, "slots", "u32") }
${ t.words(8, "apart", "u32", "read_write") }
#endif
${ reduce.scratch(REDUCE, WG) }
${ reduce.function("max", REDUCE, WG) }
#if NORM != "none" or ZEROS == 1
${ reduce.function("sum", REDUCE, WG) }
#endif
${ code8.quantise() }

fn raw(row: u32, g: u32) -> vec4<f32> { return load_some_x(p.x_offset + row * p.x_stride + g * 4u, 4u); }

// The numbers that are coded.
fn normed(x: vec4<f32>, g: u32, by: f32) -> vec4<f32> {
    #if NORM != "none"
    return x * by * load_some_weight(p.weight_offset + g * 4u, 4u);
    #else
    return x;
    #endif
}

fn counted(x: vec4<f32>, g: u32) -> vec4<f32> {
    #if APART == 1
    let at = g * 4u;
    let inside = vec4<u32>(slots[at], slots[at + 1u], slots[at + 2u], slots[at + 3u]) == vec4<u32>();
    return select(vec4<f32>(), x, inside);
    #else
    return x;
    #endif
}

// What is not finite, as the largest number there is.
fn finite(x: vec4<f32>) -> vec4<f32> {
    let largest = bitcast<vec4<f32>>(vec4<u32>(0x7f7fffffu));
    return select(x, largest, (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) >= vec4<u32>(0x7f7fffffu));
}

#macro each(body)
#if UNROLL > 0
#for u in range(UNROLL)
if g${u} < groups {
    let g = g${u};
    ${body | replace("$x", "h" ~ u)}
}
#endfor
#else
for (var g = lane; g < groups; g += ${WG}u) {
    ${body | replace("$x", "counted(normed(raw(row, g), g, by), g)")}
}
#endif
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ reduce.arguments(REDUCE) }
) {
    ${ reduce.begin(REDUCE) }
    let row = workgroup.y * grid.x + workgroup.x;
    // Workgroups beyond the last row come along to the barriers with nothing to do.
    let groups = select(0u, p.cols / 4u, row < p.rows);
    var by = 1.0;
    #for u in range(UNROLL)
    let g${u} = lane + ${u * WG}u;
    var h${u} = vec4<f32>();
    if g${u} < groups { h${u} = raw(row, g${u}); }
    #endfor
    #if NORM != "none"
    var squares = 0.0;
    #if UNROLL > 0
    #for u in range(UNROLL)
    squares += dot(h${u}, h${u});
    #endfor
    #else
    for (var g = lane; g < groups; g += ${WG}u) {
        let x = raw(row, g);
        squares += dot(x, x);
    }
    #endif
    by = inverseSqrt(workgroup_sum(squares, lane) / f32(p.cols) + p.eps);
    #endif
    #for u in range(UNROLL)
    if g${u} < groups { h${u} = counted(normed(h${u}, g${u}, by), g${u}); }
    #endfor
    var high = vec4<f32>();
    #if SYMMETRY == "symmetric"
    ${each("high = max(high, finite(abs($x)));")}
    let most = workgroup_max(max(max(high.x, high.y), max(high.z, high.w)), lane);
    let scale = scale_for(most, ${"0.007874015748031496"});
    let zero = 0.0;
    #else
    var low = vec4<f32>();
    ${each("let v = finite($x); high = max(high, v); low = max(low, -v);")}
    let most = workgroup_max(max(max(high.x, high.y), max(high.z, high.w)), lane);
    let least = -workgroup_max(max(max(low.x, low.y), max(low.z, low.w)), lane);
    let scale = scale_for(min(most - least, bitcast<f32>(p.rows * 0u + 0x7f7fffffu)), ${"0.00392156862745098"});
    let zero = clamp(-128.0 - nearest(vec4<f32>(least), scale).x, -128.0, 127.0);
    #endif
    #set LEAST = "-127.0" if SYMMETRY == "symmetric" else "-128.0"
    var sum = 0.0;
    ${each("let v = $x;
    let code = clamp(nearest(v, scale) + zero, vec4<f32>(" ~ LEAST ~ "), vec4<f32>(127.0));
    sum += (code.x + code.y) + (code.z + code.w);
    codes[p.code_offset + row * p.code_stride + g] = pack4xI8(vec4<i32>(code));")}
    #if ZEROS == 1
    let total = workgroup_sum(sum, lane);
    #endif
    if row < p.rows && lane == 0u {
        scales[p.scale_offset + row] = scale;
        #if ZEROS == 1
        zeros[p.zero_offset + 2u * row] = i32(zero);
        zeros[p.zero_offset + 2u * row + 1u] = i32(total);
        #endif
    }
    #if APART == 1
    if row < p.rows {
        let count = min(columns[0], p.apart_stride * 8u);
        // Words of two columns.
        for (var s = lane; s < (count + 63u) / 64u * 32u; s += ${WG}u) {
            var pair = vec2<f32>();
            for (var i = 0u; i < 2u; i += 1u) {
                if s * 2u + i < count {
                    let col = columns[1u + s * 2u + i];
                    pair[i] = normed(raw(row, col / 4u), col / 4u, by)[col % 4u];
                }
            }
            apart[row * p.apart_stride * 4u + s] = pack2x16float(pair);
        }
    }
    #endif
}
