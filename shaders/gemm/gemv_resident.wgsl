// y[n] = F(sum_k x[k] W[n, k] + bias[n]) + residual[n] for one row x and quantised W; GATED and NORM as in gemv.wgsl.
//
// A workgroup makes ROWS columns of y. Each invocation keeps its part of x in registers, the elements of SPAN units of W (16
// bytes of codes each, WG units apart), and goes over the rows, R of them at a time: a load of 16 bytes, decoding,
// multiply-adds, one scale a group. UNROLL 2: the next R rows are asked for before these are used. Integer codes meet x in fixed
// point (lib/fixed.wgsl), others in f32.
//
// SUMS: "subgroup", a sum over the subgroup for every row, whose parts meet in workgroup memory at the end; "memory", all invocations'
// sums in workgroup memory, added at the end.
//
// Where x came out of the caches for every few rows (gemv.wgsl), its loads were the bound: neighbours read 16 bytes each from
// lines of their own, because a unit of W covers up to 64 elements of x. H100, 32768x8192: int8 98 us, int4 154 us that way.
//
// int4 in f32 with x in registers was bound by instructions: H200, the best of 24 to 42 tunings: 32768x8192 70.2 us (next ones to 75),
// 4096x14336 21.5, 4096x4096 9.4; UNROLL and SUMS within 5%. x brought through workgroup memory in whole lines: 22.2 at 4096x14336.
// In fixed point: 52.3, 17.1, 9.1 (benches/record/nvidia-h200/2026-11-26-gemv-quant.txt).
//
// Tried on an H100, where the same has 60.8 us at 32768x8192, 19.1 at 4096x14336, 25.7 at 22016x4096, 14.8 at 4096x11008, 17.2 at 12288x4096:
// matrix units of f16 (dropped; benches/record/nvidia-h100/2026-11-26-quant.txt). Nibbles are subnormal f16 where they
// lie, x is two f16 to an element, in columns that keep the four units of 16 x 128 elements apart: 61.9, 18.9, 24.1, 16.1, 15.9.
// Without decoding 61.9 as well, products of several rows in turn or one after the other within 3%: decoding is not its bound.
// Matrix units cut off what lies 24 bits below the largest of a sum: x as the nearest 11-bit integer, whose products and sums are
// exact, and the rest; eleven bits of x and of the rest had 2 to 3 times the error.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/reduce.wgsl" as reduce
#import "lib/quant.wgsl" as quant
#import "lib/gemv.wgsl" as gemv
#import "lib/fixed.wgsl" as fixed

#set NORMED = NORM != "none"
#set FACTOR = 2 if GATED == 1 else 1
#set V = R * FACTOR
#set STEP = 128 // LOW
#set Q = STEP // 4
#set SHIFTED = ZERO in ["min", "negated_min"]
#set INTEGERS = CODE in ["int2", "int4", "int8"]
#set PARTS = STEP // GROUP if GROUP and GROUP < STEP else 1

struct Params {
    ${ gemv.params() }
    ${ quant.fields("w") }
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, CHUNK) }
${ quant.prelude(CODE) }
${ quant.matrix(2, "w", CODE, SCALE, ZERO, OUTER) }
#if RESIDUAL == "inout"
${ t.inout(3, "y", Y, Y_VEC) }
#else
${ t.output(3, "y", Y, Y_VEC) }
#endif
#if BIAS != "none"
${ t.input(4, "bias", BIAS, Y_VEC) }
#endif
#if RESIDUAL != "none" and RESIDUAL != "inout"
${ t.input(5, "residual", RESIDUAL, Y_VEC) }
#endif
#if NORMED
${ t.input(6, "norm", NORM, CHUNK) }
#endif
${ activation.functions(F) }
${ reduce.builtins("subgroup") }

// [gate or up][column], and what each subgroup has of it; subgroups are of four or more.
var<workgroup> results: array<f32, ${FACTOR * ROWS}>;
var<workgroup> partial: array<f32, ${FACTOR * ROWS * (WG if SUMS == "memory" else SUBGROUPS)}>;
#if NORMED
var<workgroup> squares: array<f32, 1>;
var<workgroup> partial_squares: array<f32, ${SUBGROUPS}>;
#endif

#macro four_sum(s, first, end)
(
#for q in range(first, end)
x${s}_${q}${" + " if not loop.last else ""}
#endfor
)
#endmacro

<# The group of part g of a unit; TAIL: rows end within one. #>
#macro group_index(s, g)
#if TAIL
min(unit${s} * ${STEP}u / ${GROUP}u + ${g}u, p.w_groups - 1u)
#else
unit${s} * ${STEP}u / ${GROUP}u + ${g}u
#endif
#endmacro

<# What one row is decoded with: units of codes, scales. `to` is a prefix of their names. #>
#macro declare(to, v)
#for s in range(SPAN)
var ${to}l${v}_${s}: vec4<u32>;
#if HIGH
var ${to}h${v}_${s}: array<u32, 2>;
#endif
#if GROUP
#for g in range(PARTS)
var ${to}affine${v}_${s}_${g}: Affine;
#endfor
#endif
#endfor
#if not GROUP
var ${to}affine${v}: Affine;
#endif
#endmacro

<# Loads what rows r on are decoded with. #>
#macro fetch(to, r)
{
    let first = n0 + ${r};
    #for v in range(V)
    let row${v} = min(first + ${v % R}u, p.n - 1u)${" + p.n" if v >= R else ""};
    let group${v} = row${v} / p.w_group_rows;
    #for s in range(SPAN)
    ${to}l${v}_${s} = unit_w(row${v} * p.w_row + unit${s});
    #if HIGH
    let high${v}_${s} = row${v} * p.w_high_row + unit${s} * ${STEP * HIGH // 32}u;
    ${to}h${v}_${s} = array<u32, 2>(
        high_w(high${v}_${s}), ${"high_w(high" ~ v ~ "_" ~ s ~ " + 1u)" if STEP * HIGH == 64 else "0u"});
    #endif
    #endfor
    #endfor
    #for v in range(V)
    #if GROUP
    #for s in range(SPAN)
    #for g in range(PARTS)
    ${to}affine${v}_${s}_${g} = group_w(group${v}, ${group_index(s, g)});
    #endfor
    #endfor
    #else
    ${to}affine${v} = group_w(group${v}, 0u);
    #endif
    #endfor
}
#endmacro

#macro take(from)
#for v in range(V)
#for s in range(SPAN)
l${v}_${s} = ${from}l${v}_${s};
#if HIGH
h${v}_${s} = ${from}h${v}_${s};
#endif
#if GROUP
#for g in range(PARTS)
affine${v}_${s}_${g} = ${from}affine${v}_${s}_${g};
#endfor
#endif
#endfor
#if not GROUP
affine${v} = ${from}affine${v};
#endif
#endfor
#endmacro

#macro affine(v, s, g)
${"affine" ~ v ~ "_" ~ s ~ "_" ~ g if GROUP else "affine" ~ v}
#endmacro

<# Elements 4q on of a unit of x, eight of them with CHUNK 8; k is where. #>
#macro x_at(s, q)
#if CHUNK == 8
let eight = load8_x(x_row + k);
x${s}_${q} = eight.low;
x${s}_${q + 1} = eight.high;
#if NORMED
square += dot(eight.low, eight.low) + dot(eight.high, eight.high);
let gain = load8_norm(p.norm_offset + k);
x${s}_${q} *= gain.low;
x${s}_${q + 1} *= gain.high;
#endif
#else
let left = min(p.k - k, 4u);
x${s}_${q} = load_some_x(x_row + k, left);
#if NORMED
square += dot(x${s}_${q}, x${s}_${q});
x${s}_${q} *= load_some_norm(p.norm_offset + k, left);
#endif
#endif
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ reduce.arguments("subgroup") }
) {
    ${ reduce.begin("subgroup") }
    let n0 = (workgroup.y * grid.x + workgroup.x) * ${ROWS}u;
    if n0 >= p.n { return; }
    ${ quant.begin(CODE, "lane", WG) }
    let m0 = workgroup.z;
    let x_row = p.x_offset + m0 * p.x_stride;
    #if NORMED
    var square = 0.0;
    #endif
    #for s in range(SPAN)
    let unit${s} = min(lane + ${s * WG}u, p.w_row - 1u);
    #endfor
    #for v in range(V)
    ${declare("", v)}
    #endfor
    ${fetch("", "0u")}
    #for s in range(SPAN)
    // Units past the end repeat the last one, times zeros.
    #for q in range(Q)
    var x${s}_${q} = vec4<f32>();
    #endfor
    #for q in range(0, Q, CHUNK // 4 if CHUNK > 4 else 1)
    {
        let k = (lane + ${s * WG}u) * ${STEP}u + ${4 * q}u;
        if k < p.k {
            ${x_at(s, q)}
        }
    }
    #endfor
    #if INTEGERS
    ${ fixed.digits("x" ~ s, LOW, PARTS) }
    #if ZERO == "point"
    #for g in range(PARTS)
    let sum_x${s}_${g} = dot(vec4<f32>(1.0), ${ four_sum(s, g * Q // PARTS, (g + 1) * Q // PARTS) });
    #endfor
    #endif
    #endif
    #if SHIFTED
    #for g in range(PARTS)
    let all${s}_${g} = dot(vec4<f32>(1.0), ${ four_sum(s, g * Q // PARTS, (g + 1) * Q // PARTS) });
    #endfor
    #endif
    #endfor
    #if NORMED
    let own = subgroupAdd(square);
    if reduce_lane == 0u { partial_squares[reduce_subgroup] = own; }
    #endif

    for (var r = 0u; r < ${ROWS}u; r += ${R}u) {
        #if UNROLL > 1
        #for v in range(V)
        ${declare("next_", v)}
        #endfor
        ${fetch("next_", "min(r + " ~ R ~ "u, " ~ (ROWS - R) ~ "u)")}
        #endif
        #for v in range(V)
        var sum${v} = 0.0;
        #endfor
        #for s in range(SPAN)
        #for g in range(PARTS)
        {
            #if INTEGERS
            #for v in range(V)
            ${ fixed.product("whole" ~ v, "l" ~ v ~ "_" ~ s, "x" ~ s, LOW, PARTS, g) }
            #if ZERO == "point"
            let part${v} = vec2<f32>(whole${v}, -${affine(v, s, g)}.shift * sum_x${s}_${g});
            #else
            let part${v} = vec2<f32>(whole${v}, 0.0);
            #endif
            #endfor
            #else
            #for v in range(V)
            var part${v} = vec2<f32>();
            #endfor
            #for q in range(g * Q // PARTS, (g + 1) * Q // PARTS)
            #for v in range(V)
            {
                ${ quant.four("w", CODE, LOW, HIGH, "l" ~ v ~ "_" ~ s, "h" ~ v ~ "_" ~ s, q, affine(v, s, g) ~ ".shift" if ZERO == "point" else "") }
                part${v} = fma(w.zw, x${s}_${q}.zw, fma(w.xy, x${s}_${q}.xy, part${v}));
            }
            #endfor
            #endfor
            #endif
            #for v in range(V)
            #if SHIFTED
            sum${v} = fma(${affine(v, s, g)}.shift, all${s}_${g}, sum${v});
            #endif
            #if GROUP or SHIFTED
            sum${v} = fma(${affine(v, s, g)}.scale, part${v}.x + part${v}.y, sum${v});
            #else
            sum${v} += part${v}.x + part${v}.y;
            #endif
            #endfor
        }
        #endfor
        #endfor
        #for v in range(V)
        #set total = "sum" ~ v ~ (" * affine" ~ v ~ ".scale" if not GROUP and not SHIFTED else "")
        #if SUMS == "memory"
        partial[(r + ${v % R + (v // R) * ROWS}u) * ${WG}u + lane] = ${total};
        #else
        let total${v} = subgroupAdd(${total});
        #endif
        #endfor
        #if SUMS == "subgroup"
        if reduce_lane == 0u {
            #for v in range(V)
            partial[(r + ${v % R + (v // R) * ROWS}u) * ${SUBGROUPS}u + reduce_subgroup] = total${v};
            #endfor
        }
        #endif
        #if UNROLL > 1
        ${take("next_")}
        #else
        ${fetch("", "min(r + " ~ R ~ "u, " ~ (ROWS - R) ~ "u)")}
        #endif
    }
    workgroupBarrier();
    #if SUMS == "memory"
    for (var i = reduce_subgroup; i < ${FACTOR * ROWS}u; i += reduce_subgroups) {
        var total = 0.0;
        for (var at = reduce_lane; at < ${WG}u; at += reduce_size) { total += partial[i * ${WG}u + at]; }
        total = subgroupAdd(total);
        if reduce_lane == 0u { results[i] = total; }
    }
    #else
    for (var i = lane; i < ${FACTOR * ROWS}u; i += ${WG}u) {
        var total = 0.0;
        for (var s = 0u; s < reduce_subgroups; s += 1u) { total += partial[i * ${SUBGROUPS}u + s]; }
        results[i] = total;
    }
    #endif
    #if NORMED
    if lane == 0u {
        var total = 0.0;
        for (var s = 0u; s < reduce_subgroups; s += 1u) { total += partial_squares[s]; }
        squares[0] = total;
    }
    #endif
    workgroupBarrier();
    ${ gemv.finish(1, ROWS, WG, GATED, NORMED, BIAS, RESIDUAL) }
}
