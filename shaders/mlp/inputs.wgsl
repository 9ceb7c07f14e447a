// A product that reads only the weights of inputs whose magnitude is above a threshold: TEAL (arXiv 2408.14690).
//
//   y[m, n] = F(sum_i v[m, i] W[i, n]) + residual[m, n],   v = x or norm(x), 0 where its magnitude is not above the threshold
//
// x: rows of k elements. W is input-major, [k, n]: what an input is multiplied by is one contiguous read. GATED: W is
// [k, 2 n], n gate columns, then n up columns; y = F(gate) * up. NORM: x is normalised before it is compared, x[m, i] norm[i] /
// rms(x[m]). SCALED (8-bit weights): scales [k] of the inputs.
//
// A workgroup makes 8 L columns (GATED: of either half). The inputs that pass, BLOCK at a time, become a list of numbers and
// values in workgroup memory, ascending: an invocation has 4 OWN neighbouring inputs in registers, and a prefix sum of how many
// pass says where its own go. Every workgroup does so for itself, which costs less than a dispatch. L invocations share the row
// of an input, 16 bytes each with 16-bit weights; the WG / L teams take inputs by turns, UNROLL rows in flight, and add up at the
// end in a fixed order. M rows of x share what is read: an input counts if it passes for any of them. SPLITS above 1:
// workgroup_id.y takes its part of each list, and sum.wgsl adds up partial [split, m, stride] and does the epilogue.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/reduce.wgsl" as reduce
#import "lib/weights.wgsl" as weights
#import "lib/compact.wgsl" as compact

#set NORMED = NORM != "none"
#set V = 2 if GATED == 1 else 1
#set TEAMS = WG // L
<# Groups of four inputs of a block that an invocation has. #>
#set OWN = (BLOCK + 4 * WG - 1) // (4 * WG)
<# Entries of a list. #>
#set LISTED = (BLOCK + SPLITS - 1) // SPLITS

struct Params {
    n: u32,
    k: u32,
    rows: u32,
    stride: u32,
    up: u32,
    x_offset: u32,
    x_stride: u32,
    w_offset: u32,
    w_stride: u32,
    y_offset: u32,
    y_stride: u32,
    residual_offset: u32,
    residual_stride: u32,
    norm_offset: u32,
    // The bits of a float that is not negative.
    threshold: u32,
    eps: f32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, X_VEC) }
${ weights.operand(2, "w", W, CHUNK) }
#if SPLITS > 1
@group(0) @binding(3) var<storage, read_write> partial: array<vec4<f32>>;
#elif RESIDUAL == "inout"
${ t.inout(3, "y", Y, Y_VEC) }
#else
${ t.output(3, "y", Y, Y_VEC) }
#endif
#if SPLITS == 1 and RESIDUAL != "none" and RESIDUAL != "inout"
${ t.input(4, "residual", RESIDUAL, Y_VEC) }
#endif
#if W == "i8"
${ t.words(5, "scales", "f32") }
#endif
#if NORMED
${ t.input(6, "norm", NORM, X_VEC) }
${ reduce.scratch(REDUCE, WG) }
${ reduce.function("sum", REDUCE, WG) }
#endif
${ weights.chunks("w", W, CHUNK, FULL, "p.n") }
#if SPLITS == 1
${ activation.functions(F) }
#endif
${ reduce.column_sum(WG, L) }

// Which inputs pass, and their values: 0 in rows of x where they do not. Of i8 weights with the input's scale.
var<workgroup> list: array<u32, ${LISTED}>;
var<workgroup> values_of: array<f32, ${LISTED * M}>;
${ compact.scratch(WG) }
#if NORMED
var<private> scale: vec4<f32>;
#endif

// How many of four inputs from `own` on are in the block that begins at `first`, and in x.
fn there(own: u32, first: u32) -> u32 {
    let end = min(p.k - first, ${BLOCK}u);
    return min(max(end, own) - own, 4u);
}

// Four inputs of a row of x, as they are compared and multiplied; zero outside.
fn values(from_x: u32, m: u32, own: u32, first: u32) -> vec4<f32> {
    let n = there(own, first);
    if n == 0u { return vec4<f32>(); }
    let v = load_some_x(from_x + first + own, n);
    #if NORMED
    return v * load_some_norm(p.norm_offset + first + own, n) * scale[m];
    #else
    return v;
    #endif
}
#if W == "i8"
fn scales_of(own: u32, first: u32) -> vec4<f32> {
    var found = vec4<f32>();
    let n = there(own, first);
    for (var c = 0u; c < n; c += 1u) { found[c] = scales[first + own + c]; }
    return found;
}
#endif

// Of magnitudes the bits are ordered as the values are, and NaN's are above all.
fn above(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(p.threshold);
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    #if NORMED
    ${ reduce.arguments(REDUCE) }
    #endif
) {
    #if NORMED
    ${ reduce.begin(REDUCE) }
    #endif
    let col = (workgroup.x * ${L}u + lane % ${L}u) * 8u;
    let team = lane / ${L}u;
    let m0 = workgroup.z * ${M}u;
    // Rows past the end repeat the last one and are not stored.
    #for m in range(M)
    let x${m} = p.x_offset + min(m0 + ${m}u, p.rows - 1u) * p.x_stride;
    #for v in range(V)
    var low${m}_${v} = vec4<f32>();
    var high${m}_${v} = vec4<f32>();
    #endfor
    #endfor
    #if NORMED
    #for m in range(M)
    {
        var square = 0.0;
        for (var i = lane * 4u; i < p.k; i += ${16 * WG}u) {
            #for e in range(4)
            let i${e} = i + ${e * 4 * WG}u;
            let v${e} = load_some_x(x${m} + i${e}, min(max(p.k, i${e}) - i${e}, 4u));
            #endfor
            #for e in range(4)
            square += dot(v${e}, v${e});
            #endfor
        }
        scale[${m}] = inverseSqrt(workgroup_sum(square, lane) / f32(p.k) + p.eps);
    }
    #endfor
    #endif
    for (var first = 0u; first < p.k; first += ${BLOCK}u) {
        let own = lane * ${4 * OWN}u;
        var mask = 0u;
        #for e in range(OWN)
        #for m in range(M)
        let v${e}_${m} = values(x${m}, ${m}u, own + ${4 * e}u, first);
        #endfor
        #if W == "i8"
        let s${e} = scales_of(own + ${4 * e}u, first);
        #endif
        #endfor
        #for e in range(OWN)
        #for m in range(M)
        mask |= dot(vec4<u32>(above(v${e}_${m})), vec4<u32>(1u, 2u, 4u, 8u)) << ${4 * e}u;
        #endfor
        #endfor
        ${ compact.ranks(WG, "countOneBits(mask)", "rank", "all") }
        #if SPLITS > 1
        let begin = all * workgroup.y / ${SPLITS}u;
        let end = all * (workgroup.y + 1u) / ${SPLITS}u;
        #else
        let begin = 0u;
        let end = all;
        #endif
        #for e in range(OWN)
        #for c in range(4)
        if (mask & ${2 ** (4 * e + c)}u) != 0u {
            if rank >= begin && rank < end {
                list[rank - begin] = first + own + ${4 * e + c}u;
                #for m in range(M)
                #if M > 1
                let kept${m} = select(0.0, v${e}_${m}[${c}], above(v${e}_${m})[${c}]);
                #else
                let kept${m} = v${e}_${m}[${c}];
                #endif
                values_of[(rank - begin) * ${M}u + ${m}u] = kept${m}${" * s" ~ e ~ "[" ~ c ~ "]" if W == "i8" else ""};
                #endfor
            }
            rank += 1u;
        }
        #endfor
        #endfor
        workgroupBarrier();
        let count = end - begin;
        for (var j = team; j < count; j += ${TEAMS * UNROLL}u) {
            #for u in range(UNROLL)
            let e${u} = min(j + ${u * TEAMS}u, count - 1u);
            let i${u} = list[e${u}];
            #for v in range(V)
            let w${u}_${v} = chunk_w(p.w_offset + i${u} * p.w_stride${" + p.n" if v == 1 else ""}, col);
            #endfor
            #endfor
            #for u in range(UNROLL)
            #for m in range(M)
            {
                let factor = select(0.0, values_of[e${u} * ${M}u + ${m}u], j + ${u * TEAMS}u < count);
                #for v in range(V)
                low${m}_${v} = fma(vec4<f32>(factor), w${u}_${v}.low, low${m}_${v});
                high${m}_${v} = fma(vec4<f32>(factor), w${u}_${v}.high, high${m}_${v});
                #endfor
            }
            #endfor
            #endfor
        }
    }
    #for m in range(M)
    {
        let row = m0 + ${m}u;
        #for half in ["low", "high"]
        {
            #for v in range(V)
            let sum${v} = column_sum(${half}${m}_${v}, lane);
            #endfor
            let at = col + ${4 if half == "high" else 0}u;
            if lane < ${L}u && row < p.rows && at < p.n {
                #if SPLITS > 1
                let to = (workgroup.y * p.rows + row) * p.stride + at;
                partial[to >> 2u] = sum0;
                #if V == 2
                partial[(to + p.up) >> 2u] = sum1;
                #endif
                #else
                let n = min(p.n - at, 4u);
                var y = activate4(sum0);
                #if V == 2
                y *= sum1;
                #endif
                let to = p.y_offset + row * p.y_stride + at;
                #if RESIDUAL == "inout"
                y += load_some_y(to, n);
                #elif RESIDUAL != "none"
                y += load_some_residual(p.residual_offset + row * p.residual_stride + at, n);
                #endif
                store_some_y(to, n, y);
                #endif
            }
        }
        #endfor
    }
    #endfor
}
