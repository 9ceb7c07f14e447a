// y[m, n] = F(sum_k x[m, k] W[n, k] + bias[n]) + residual[m, n] for few rows m; GATED: F(gate) * up, where the
// rows of W are n gate rows, then n up rows. NORM: x is normalised on the way, x[m, k] norm[k] / rms(x[m]).
//
// x, W, y, residual: rows of adjacent elements, `stride` apart. The product is bound by reading W: it is read
// once (for each M rows of x, workgroup_id.z), CHUNK elements an access, neighbours beside each other; x comes out of
// the caches.
//
// A workgroup makes ROWS columns of y. TEAM "subgroup": each subgroup takes R of them at a time and strides
// along k, all others do likewise without barriers; "workgroup": all invocations share the same R. UNROLL steps
// along k are loaded before any is used: R * UNROLL independent loads of W in flight for each invocation.
// The sums go through workgroup memory, so that four neighbours are finished and stored together, as 16-bit
// elements need. NORM: every team sums x^2 on its way; it is memory that is short, not arithmetic, and the sum
// scales the result only at the end.
//
// W may be quantised (CODE): then a step is a unit of 16 bytes of codes, decoded in registers, each group of which is
// scaled once (and shifted: by the sum of its x). GROUP is its elements along k, 0 for all of a row.
//
// CHUNK 8: rows of W are multiples of 16 bytes (8 elements of 16 bits); 4: of four elements; 1: any, by element.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/reduce.wgsl" as reduce
#import "lib/quant.wgsl" as quant
#import "lib/gemv.wgsl" as gemv

#set V = R * (2 if GATED == 1 else 1)
#set NORMED = NORM != "none"
#set COUNT = M * V + (M if NORMED else 0)
#set QUANT = W == "quantised"
<# Elements of a step along k, and the vectors of four they are in. #>
#set STEP = 128 // LOW if QUANT else (8 if CHUNK == 8 else 4)
#set Q = STEP // 4
<# Vectors of sums have more independent chains, but four times the registers. #>
#set WIDE_SUMS = M * V <= 8 and not QUANT

#macro operand(index, name, dtype)
#if CHUNK == 8
${ t.input8(index, name, dtype) }
#else
${ t.input(index, name, dtype, CHUNK) }
#endif
#endmacro

struct Params {
    ${ gemv.params() }
#if QUANT
    ${ quant.fields("w") }
#endif
}
${ t.params(PARAMS) }
${ t.prelude() }
#if QUANT
${ t.input(1, "x", X, 1 if CHUNK == 1 else 4) }
#else
${ operand(1, "x", X) }
#endif
#if QUANT
${ quant.prelude(CODE) }
${ quant.matrix(2, "w", CODE, SCALE, ZERO, OUTER) }
#else
${ operand(2, "w", W) }
#endif
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
#if QUANT
${ t.input(6, "norm", NORM, 1 if CHUNK == 1 else 4) }
#else
${ operand(6, "norm", NORM) }
#endif
#endif
${ activation.functions(F) }

#if TEAM == "workgroup"
${ reduce.sums_scratch(REDUCE, WG, COUNT) }
#else
${ reduce.builtins(REDUCE) }
#endif
// [gate or up][row of x][column]
var<workgroup> results: array<f32, ${(2 if GATED == 1 else 1) * M * ROWS}>;
#if NORMED
var<workgroup> squares: array<f32, ${M}>;
#endif

<# Names `${to}_0`, `${to}_1` for the elements of one step. #>
#macro load(to, name, index)
#if CHUNK == 8
let ${to} = load8_${name}(${index});
let ${to}_0 = ${to}.low;
let ${to}_1 = ${to}.high;
#elif CHUNK == 4
let ${to}_0 = load4_${name}(${index});
#else
let ${to}_0 = load_some_${name}(${index}, left);
#endif
#endmacro

<# The same of a quantised matrix: units of W and the scales of their groups, then group by group. TAIL: the last unit
   is not full. #>
#set PARTS = STEP // GROUP if QUANT and GROUP and GROUP < STEP else 1
#set SHIFTED = QUANT and ZERO in ["min", "negated_min"]
#macro quant_steps(count)
#for u in range(count)
let k${u} = k + ${u}u * stride;
#for v in range(V)
let l${u}_${v} = unit_w(w${v} + k${u} / ${STEP}u);
#if HIGH
let h${u}_${v} = array<u32, 2>(
    high_w(high${v} + k${u} / ${32 // HIGH}u), ${"high_w(high" ~ v ~ " + k" ~ u ~ " / " ~ 32 // HIGH ~ "u + 1u)" if STEP * HIGH == 64 else "0u"});
#endif
#if GROUP
#for g in range(PARTS)
let group${u}_${v}_${g} = group_w(group${v}, ${"min(k" ~ u ~ " / " ~ GROUP ~ "u + " ~ g ~ "u, p.w_groups - 1u)" if TAIL else "k" ~ u ~ " / " ~ GROUP ~ "u + " ~ g ~ "u"});
#endfor
#endif
#endfor
#endfor
#for u in range(count)
#for g in range(PARTS)
{
    #for m in range(M)
    #for v in range(V)
    var part${m}_${v} = 0.0;
    #endfor
    #if SHIFTED
    var all${m} = vec4<f32>();
    #endif
    #endfor
    #for q in range(g * Q // PARTS, (g + 1) * Q // PARTS)
    {
        #for v in range(V)
        #if ZERO == "point"
        ${ quant.four("level" ~ v, CODE, LOW, HIGH, "l" ~ u ~ "_" ~ v, "h" ~ u ~ "_" ~ v, q) }
        let w${v} = level${v} - ${"group" ~ u ~ "_" ~ v ~ "_" ~ g if GROUP else "group" ~ v ~ "_0"}.shift;
        #else
        ${ quant.four("w" ~ v, CODE, LOW, HIGH, "l" ~ u ~ "_" ~ v, "h" ~ u ~ "_" ~ v, q) }
        #endif
        #endfor
        #if TAIL
        let left = min(p.k - min(k${u} + ${4 * q}u, p.k), 4u);
        #endif
        #if NORMED
        let gain = ${ x_four("norm", "p.norm_offset + k" ~ u, q) };
        #endif
        #for m in range(M)
        {
            #if NORMED
            let x = ${ x_four("x", "x" ~ m ~ " + k" ~ u, q) };
            square${m} += dot(x, x);
            let s = x * gain;
            #else
            let s = ${ x_four("x", "x" ~ m ~ " + k" ~ u, q) };
            #endif
            #if SHIFTED
            all${m} += s;
            #endif
            #for v in range(V)
            part${m}_${v} = fma(w${v}.w, s.w, fma(w${v}.z, s.z, fma(w${v}.y, s.y, fma(w${v}.x, s.x, part${m}_${v}))));
            #endfor
        }
        #endfor
    }
    #endfor
    #for m in range(M)
    #if SHIFTED
    let shifted${m} = (all${m}.x + all${m}.y) + (all${m}.z + all${m}.w);
    #endif
    #for v in range(V)
    #set group = "group" ~ u ~ "_" ~ v ~ "_" ~ g if GROUP else "group" ~ v ~ "_0"
    #if SHIFTED
    sum${m}_${v} = fma(${group}.scale, part${m}_${v}, fma(${group}.shift, shifted${m}, sum${m}_${v}));
    #elif GROUP
    sum${m}_${v} = fma(${group}.scale, part${m}_${v}, sum${m}_${v});
    #else
    sum${m}_${v} += part${m}_${v};
    #endif
    #endfor
    #endfor
}
#endfor
#endfor
#endmacro

#macro x_four(name, at, q)
#if TAIL
load_some_${name}(${at} + ${4 * q}u, left)
#else
load4_${name}(${at} + ${4 * q}u)
#endif
#endmacro

<# `count` steps along k, `stride` apart: all loads of W, then the arithmetic. #>
#macro steps(count)
#if QUANT
${quant_steps(count)}
#else
#for u in range(count)
let k${u} = k + ${u}u * stride;
#for v in range(V)
#if CHUNK == 1
let left${u}_${v} = min(p.k - k${u}, 4u);
let w${u}_${v}_0 = load_some_w(w${v} + k${u}, left${u}_${v});
#else
${load("w" ~ u ~ "_" ~ v, "w", "w" ~ v ~ " + k" ~ u)}
#endif
#endfor
#endfor
#for u in range(count)
{
    #if CHUNK == 1
    let left = min(p.k - k${u}, 4u);
    #endif
    #if NORMED
    ${load("g", "norm", "p.norm_offset + k" ~ u)}
    #endif
    #for m in range(M)
    {
        ${load("x", "x", "x" ~ m ~ " + k" ~ u)}
        #for q in range(Q)
        #if NORMED
        square${m} += dot(x_${q}, x_${q});
        let s${q} = x_${q} * g_${q};
        #else
        let s${q} = x_${q};
        #endif
        #for v in range(V)
        #if WIDE_SUMS
        sum${m}_${v} = fma(w${u}_${v}_${q}, s${q}, sum${m}_${v});
        #else
        sum${m}_${v} += dot(w${u}_${v}_${q}, s${q});
        #endif
        #endfor
        #endfor
    }
    #endfor
}
#endfor
#endif
#endmacro

#macro total(m, v)
#if QUANT and not GROUP and not SHIFTED
sum${m}_${v} * group${v}_0.scale
#elif WIDE_SUMS
(sum${m}_${v}.x + sum${m}_${v}.y) + (sum${m}_${v}.z + sum${m}_${v}.w)
#else
sum${m}_${v}
#endif
#endmacro

<# Where in `results` a sum goes: v counts gate and up of the first row, of the second and so on. #>
#macro place(m, v)
#if GATED == 1
${(v % 2) * M * ROWS + m * ROWS + v // 2}u
#else
${m * ROWS + v}u
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
    let n0 = (workgroup.y * grid.x + workgroup.x) * ${ROWS}u;
    if n0 >= p.n { return; }
    #if QUANT
    ${ quant.begin(CODE, "lane", WG) }
    #endif
    let m0 = workgroup.z * ${M}u;
    // Rows past the end repeat the last one and are not stored.
    #for m in range(M)
    let x${m} = p.x_offset + min(m0 + ${m}u, p.rows - 1u) * p.x_stride;
    #endfor
    #if TEAM == "subgroup"
    let stride = reduce_size * ${STEP}u;
    for (var first = reduce_subgroup * ${R}u; first < ${ROWS}u; first += reduce_subgroups * ${R}u) {
        var k = reduce_lane * ${STEP}u;
    #else
    let stride = ${WG * STEP}u;
    for (var first = 0u; first < ${ROWS}u; first += ${R}u) {
        var k = lane * ${STEP}u;
    #endif
        #for v in range(V)
        #if QUANT
        let row${v} = min(n0 + first + ${v // 2 if GATED == 1 else v}u, p.n - 1u)${" + " ~ v % 2 ~ "u * p.n" if GATED == 1 else ""};
        let w${v} = row${v} * p.w_row;
        let group${v} = row${v} / p.w_group_rows;
        #if HIGH
        let high${v} = row${v} * p.w_high_row;
        #endif
        #if not GROUP
        let group${v}_0 = group_w(group${v}, 0u);
        #endif
        #elif GATED == 1
        let w${v} = p.w_offset + (min(n0 + first + ${v // 2}u, p.n - 1u) + ${v % 2}u * p.n) * p.w_stride;
        #else
        let w${v} = p.w_offset + min(n0 + first + ${v}u, p.n - 1u) * p.w_stride;
        #endif
        #endfor
        #for m in range(M)
        #for v in range(V)
        var sum${m}_${v} = ${"vec4<f32>()" if WIDE_SUMS else "0.0"};
        #endfor
        #if NORMED
        var square${m} = 0.0;
        #endif
        #endfor
        #if UNROLL > 1
        for (; k + ${UNROLL - 1}u * stride < p.k; k += ${UNROLL}u * stride) {
            ${steps(UNROLL)}
        }
        #endif
        for (; k < p.k; k += stride) {
            ${steps(1)}
        }
        #if TEAM == "subgroup"
        #for m in range(M)
        #for v in range(V)
        let total${m}_${v} = subgroupAdd(${total(m, v)});
        #endfor
        #if NORMED
        let squares${m} = subgroupAdd(square${m});
        #endif
        #endfor
        if reduce_lane == 0u {
            #for m in range(M)
            #for v in range(V)
            results[first + ${place(m, v)}] = total${m}_${v};
            #endfor
            #if NORMED
            if first == 0u { squares[${m}] = squares${m}; }
            #endif
            #endfor
        }
        #else
        #for m in range(M)
        #for v in range(V)
        ${ reduce.sums_put(REDUCE, WG, m * V + v, total(m, v)) }
        #endfor
        #if NORMED
        ${ reduce.sums_put(REDUCE, WG, M * V + m, "square" ~ m) }
        #endif
        #endfor
        ${ reduce.sums_finish(REDUCE, WG, COUNT) }
        if lane < ${M * V}u {
            let m = lane / ${V}u;
            let v = lane % ${V}u;
            #if GATED == 1
            results[(v % 2u) * ${M * ROWS}u + m * ${ROWS}u + first + v / 2u] = total;
            #else
            results[m * ${ROWS}u + first + v] = total;
            #endif
        }
        #if NORMED
        if lane >= ${M * V}u && lane < ${COUNT}u { squares[lane - ${M * V}u] = total; }
        #endif
        workgroupBarrier();
        #endif
    }
    #if TEAM == "subgroup"
    workgroupBarrier();
    #endif

    ${ gemv.finish(M, ROWS, WG, GATED, NORMED, BIAS, RESIDUAL) }
}
