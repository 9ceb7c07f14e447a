// y[n] = F(sum_k x[k] W[n, k] + bias[n]) + residual[n] for one row x and quantised W; GATED and NORM as in gemv.wgsl.
//
// A workgroup makes ROWS columns of y. Each invocation keeps its part of x in registers, the elements of SPAN units of W (16
// bytes of codes each, WG units apart), and goes over the rows, R of them at a time: a load of 16 bytes, decoding,
// multiply-adds, one scale a group, a sum over the subgroup. Sums of subgroups meet in workgroup memory, once, at the end.
//
// Where x came out of the caches for every few rows (gemv.wgsl), its loads were the bound: neighbours read 16 bytes each from
// lines of their own, because a unit of W covers up to 64 elements of x. H100, 32768x8192: int8 98 us, int4 154 us that way.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/reduce.wgsl" as reduce
#import "lib/quant.wgsl" as quant
#import "lib/gemv.wgsl" as gemv

#set NORMED = NORM != "none"
#set FACTOR = 2 if GATED == 1 else 1
#set V = R * FACTOR
#set STEP = 128 // LOW
#set Q = STEP // 4
#set SHIFTED = ZERO in ["min", "negated_min"]
#set PARTS = STEP // GROUP if GROUP and GROUP < STEP else 1

struct Params {
    ${ gemv.params() }
    ${ quant.fields("w") }
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, 1 if CHUNK == 1 else 4) }
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
${ t.input(6, "norm", NORM, 1 if CHUNK == 1 else 4) }
#endif
${ activation.functions(F) }
${ reduce.builtins("subgroup") }

// [gate or up][column], and what each subgroup has of it; subgroups are of four or more.
var<workgroup> results: array<f32, ${FACTOR * ROWS}>;
var<workgroup> partial: array<f32, ${FACTOR * ROWS * SUBGROUPS}>;
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
    // Units past the end repeat the last one, times zeros.
    let unit${s} = min(lane + ${s * WG}u, p.w_row - 1u);
    let k${s} = (lane + ${s * WG}u) * ${STEP}u;
    #for q in range(Q)
    var x${s}_${q} = vec4<f32>();
    {
        let k = k${s} + ${4 * q}u;
        let left = p.k - min(k, p.k);
        if left > 0u {
            x${s}_${q} = load_some_x(x_row + k, min(left, 4u));
            #if NORMED
            square += dot(x${s}_${q}, x${s}_${q});
            x${s}_${q} *= load_some_norm(p.norm_offset + k, min(left, 4u));
            #endif
        }
    }
    #endfor
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
        #for v in range(V)
        let row${v} = min(n0 + r + ${v % R}u, p.n - 1u)${" + p.n" if v >= R else ""};
        let group${v} = row${v} / p.w_group_rows;
        #for s in range(SPAN)
        let l${v}_${s} = unit_w(row${v} * p.w_row + unit${s});
        #if HIGH
        let high${v}_${s} = row${v} * p.w_high_row + unit${s} * ${STEP * HIGH // 32}u;
        let h${v}_${s} = array<u32, 2>(
            high_w(high${v}_${s}), ${"high_w(high" ~ v ~ "_" ~ s ~ " + 1u)" if STEP * HIGH == 64 else "0u"});
        #endif
        #if GROUP
        #for g in range(PARTS)
        let affine${v}_${s}_${g} = group_w(group${v}, ${group_index(s, g)});
        #endfor
        #endif
        #endfor
        #if not GROUP
        let affine${v} = group_w(group${v}, 0u);
        #endif
        #endfor
        #for v in range(V)
        var sum${v} = 0.0;
        #endfor
        #for s in range(SPAN)
        #for g in range(PARTS)
        {
            #for v in range(V)
            var part${v} = vec2<f32>();
            #endfor
            #for q in range(g * Q // PARTS, (g + 1) * Q // PARTS)
            #for v in range(V)
            {
                #if ZERO == "point"
                ${ quant.four("level", CODE, LOW, HIGH, "l" ~ v ~ "_" ~ s, "h" ~ v ~ "_" ~ s, q) }
                let w = level - ${"affine" ~ v ~ "_" ~ s ~ "_" ~ g if GROUP else "affine" ~ v}.shift;
                #else
                ${ quant.four("w", CODE, LOW, HIGH, "l" ~ v ~ "_" ~ s, "h" ~ v ~ "_" ~ s, q) }
                #endif
                part${v} = fma(w.zw, x${s}_${q}.zw, fma(w.xy, x${s}_${q}.xy, part${v}));
            }
            #endfor
            #endfor
            #for v in range(V)
            #set affine = "affine" ~ v ~ "_" ~ s ~ "_" ~ g if GROUP else "affine" ~ v
            #if SHIFTED
            sum${v} = fma(${affine}.shift, all${s}_${g}, sum${v});
            #endif
            #if GROUP or SHIFTED
            sum${v} = fma(${affine}.scale, part${v}.x + part${v}.y, sum${v});
            #else
            sum${v} += part${v}.x + part${v}.y;
            #endif
            #endfor
        }
        #endfor
        #endfor
        #for v in range(V)
        let total${v} = subgroupAdd(sum${v}${" * affine" ~ v ~ ".scale" if not GROUP and not SHIFTED else ""});
        #endfor
        if reduce_lane == 0u {
            #for v in range(V)
            partial[(r + ${v % R + (v // R) * ROWS}u) * ${SUBGROUPS}u + reduce_subgroup] = total${v};
            #endfor
        }
    }
    workgroupBarrier();
    for (var i = lane; i < ${FACTOR * ROWS}u; i += ${WG}u) {
        var total = 0.0;
        for (var s = 0u; s < reduce_subgroups; s += 1u) { total += partial[i * ${SUBGROUPS}u + s]; }
        results[i] = total;
    }
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
