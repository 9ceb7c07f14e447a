// A gated MLP that computes only the neurons that fire: CATS (arXiv 2404.08763). Partial sums over neurons of
//
//   y[m, :] = sum_i a_i (x[m] . up_i) down_i,   a_i = F(x[m] . gate_i) where its magnitude is above the threshold, else 0.
//
// x: rows of k elements. gate [n, k]. pairs [n, 2 k]: neuron i's row of up, then its column of down, one contiguous read
// (row-column bundling of LLM in a flash, arXiv 2312.11514). NORM: x is normalised on the way, as gemv.wgsl does it.
// SCALED (weights of 8 bits): scales [n, 3] of the neuron's gate, up and down. LISTED: only neurons that a list names,
// listed[0] of them, which a predictor has written (PowerInfer, arXiv 2312.12456).
//
// STAGE "whole" does all of it. "gates" stops at a, active [m, n], so that the host can bring in what fires; "rest" goes on from
// there with neurons first_neuron to end_neuron, whose pairs lie at rows `places` [n], on top of the partial sums of the neurons
// before: the same operations in the same order as "whole", however many pieces there are.
//
// Workgroup g of `groups` owns neurons g, g + groups, .. (hot ones are often neighbours), NB at a time: all their gates,
// then the rows of up and then of down of those that fire. The list of these is made in workgroup memory, in ascending order,
// from a bit mask: no dispatch, no list in memory, nothing for the host to read, and sums are the same every time. It
// leaves partial[g, m, 0..stride]; sum.wgsl adds them up. M rows of x share what is read: a neuron is read if it fires
// for any of them, which is never more than lists of their own would read.
//
// An invocation has columns of its own, 8 in each of SPANS: its part of x stays in registers, and so do its sums.
// Dot products end in one partial sum a subgroup, so that rows stream without barriers; without subgroups a
// tree ends every U rows.
//
// H100, f16, 4096 x 11008, one token, us at sparsity 0.5 / 0.9 with the sum: 264 workgroups of 512 and U 4 71.3 / 48.4 (dense
// MLP 95.0); U 2 73.4 / 49.9; 132 workgroups, U 8 71.7 / 48.0; 396 75.9 / 52.2; workgroups of 256 71.7 / 47.7; of 1024, of which
// half have no columns, 160. Bytes alone: 58.9 / 35.3. Dropped: the first columns of down loaded before the sums of up end, together
// with five loads in flight in sum.wgsl: 91.9 / 59.1. Up and down of a
// neuron loaded together (H200): 61.5 / 41.4, apart 54.6 / 38.2. Not tried: gates in a dispatch of their own, and the whole list after it.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/reduce.wgsl" as reduce
#import "lib/weights.wgsl" as weights

#set NORMED = NORM != "none"
#set SUBGROUPS = REDUCE == "subgroup"
#set GATES = STAGE != "rest"
#set PAIRS = STAGE != "gates"
<# Partial sums of a dot product. #>
#set PARTS = WG // LEAST if SUBGROUPS else 1

struct Params {
    n: u32,
    k: u32,
    rows: u32,
    groups: u32,
    stride: u32,
    x_offset: u32,
    x_stride: u32,
    gate_offset: u32,
    gate_stride: u32,
    pairs_offset: u32,
    pairs_stride: u32,
    norm_offset: u32,
    // The bits of a float that is not negative.
    threshold: u32,
    eps: f32,
    // Of stage "rest".
    first_neuron: u32,
    end_neuron: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ weights.operand(1, "x", X, CHUNK) }
#if GATES
${ weights.operand(2, "gate", W, CHUNK) }
#else
${ t.words(2, "gate_activations", "f32") }
#endif
#if PAIRS
${ weights.operand(3, "pairs", W, CHUNK) }
@group(0) @binding(4) var<storage, read_write> partial: array<vec4<f32>>;
#else
${ t.words(4, "gate_activations", "f32", "read_write") }
#endif
#if W == "i8"
${ t.words(5, "scales", "f32") }
#endif
#if NORMED
${ weights.operand(6, "norm", NORM, CHUNK) }
${ weights.chunks("norm", NORM, CHUNK, FULL, "p.k") }
#endif
#if LISTED
${ t.words(7, "listed", "u32") }
#elif STAGE == "rest"
${ t.words(7, "places", "u32") }
#endif
${ weights.chunks("x", X, CHUNK, FULL, "p.k") }
#if GATES
${ weights.chunks("gate", W, CHUNK, FULL, "p.k") }
#endif
#if PAIRS
${ weights.chunks("pairs", W, CHUNK, FULL, "p.k") }
#endif
${ activation.functions(F) }

#if SUBGROUPS
${ reduce.builtins(REDUCE) }
#else
${ reduce.sums_scratch(REDUCE, WG, M * U) }
#endif
// [neuron][row of x][part]
var<workgroup> dots: array<f32, ${NB * M * PARTS}>;
#if NORMED
var<workgroup> squares: array<f32, ${M * PARTS}>;
#endif
// Activations of the block's neurons; of those that fire, what their column of down is multiplied by.
var<workgroup> actual: array<f32, ${NB * M}>;
var<workgroup> factors: array<f32, ${NB * M}>;
var<workgroup> fires: array<atomic<u32>, ${NB // 32}>;
var<workgroup> kept: array<u32, ${NB}>;
var<workgroup> survivors: u32;

fn neuron(owned: u32, group: u32) -> u32 {
    let i = group + owned * p.groups;
    #if LISTED
    return min(listed[1u + i], p.n - 1u);
    #else
    return i;
    #endif
}

fn dot_of(j: u32, m: u32) -> f32 {
    var sum = 0.0;
    for (var s = 0u; s < ${"reduce_subgroups" if SUBGROUPS else "1u"}; s += 1u) {
        sum += dots[(j * ${M}u + m) * ${PARTS}u + s];
    }
    return sum;
}

<# Dot products of the rows `at` (an expression of j) of `name`, for j below `count`, with x: into `dots`. #>
#macro products(name, at, count)
for (var first_row = 0u; first_row < ${count}; first_row += ${U}u) {
    #for u in range(U)
    let row${u} = row_of_${name}(${at("min(first_row + " ~ u ~ "u, " ~ count ~ " - 1u)")});
    #for s in range(SPANS)
    let w${u}_${s} = chunk_${name}(row${u}, col${s});
    #endfor
    #endfor
    #for u in range(U)
    #for m in range(M)
    var dot${u}_${m} = 0.0;
    #for s in range(SPANS)
    dot${u}_${m} += dot(w${u}_${s}.low, x${m}_${s}.low) + dot(w${u}_${s}.high, x${m}_${s}.high);
    #endfor
    #if SUBGROUPS
    dot${u}_${m} = subgroupAdd(dot${u}_${m});
    #else
    ${ reduce.sums_put(REDUCE, WG, u * M + m, "dot" ~ u ~ "_" ~ m) }
    #endif
    #endfor
    #endfor
    #if SUBGROUPS
    if reduce_lane == 0u {
        #for u in range(U)
        #for m in range(M)
        dots[((first_row + ${u}u) * ${M}u + ${m}u) * ${PARTS}u + reduce_subgroup] = dot${u}_${m};
        #endfor
        #endfor
    }
    #else
    ${ reduce.sums_finish(REDUCE, WG, M * U) }
    if lane < ${M * U}u { dots[first_row * ${M}u + lane] = total; }
    workgroupBarrier();
    #endif
}
workgroupBarrier();
#endmacro

#macro own(j)
neuron(first + ${j}, group)
#endmacro
#macro fired(j)
neuron(first + kept[${j}], group)
#endmacro

fn row_of_gate(i: u32) -> u32 { return p.gate_offset + i * p.gate_stride; }
fn row_of_pairs(i: u32) -> u32 { return p.pairs_offset + ${"places[i]" if STAGE == "rest" else "i"} * p.pairs_stride; }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ reduce.arguments(REDUCE) }
) {
    ${ reduce.begin(REDUCE) }
    let group = workgroup.x;
    let m0 = workgroup.z * ${M}u;
    #for s in range(SPANS)
    let col${s} = (${s * WG}u + lane) * 8u;
    #endfor
    // Rows past the end repeat the last one and are not stored.
    #for m in range(M)
    let from${m} = p.x_offset + min(m0 + ${m}u, p.rows - 1u) * p.x_stride;
    #for s in range(SPANS)
    var x${m}_${s} = chunk_x(from${m}, col${s});
    #endfor
    #endfor
    #if NORMED
    #for m in range(M)
    var square${m} = 0.0;
    #for s in range(SPANS)
    square${m} += dot(x${m}_${s}.low, x${m}_${s}.low) + dot(x${m}_${s}.high, x${m}_${s}.high);
    #endfor
    #endfor
    #for s in range(SPANS)
    let g${s} = chunk_norm(p.norm_offset, col${s});
    #for m in range(M)
    x${m}_${s} = Eight(x${m}_${s}.low * g${s}.low, x${m}_${s}.high * g${s}.high);
    #endfor
    #endfor
    #if SUBGROUPS
    #for m in range(M)
    square${m} = subgroupAdd(square${m});
    if reduce_lane == 0u { squares[${m * PARTS}u + reduce_subgroup] = square${m}; }
    #endfor
    #else
    {
        #for m in range(M)
        ${ reduce.sums_put(REDUCE, WG, m, "square" ~ m) }
        #endfor
        ${ reduce.sums_finish(REDUCE, WG, M) }
        if lane < ${M}u { squares[lane] = total; }
        workgroupBarrier();
    }
    #endif
    #endif
    #for m in range(M)
    #for s in range(SPANS)
    var low${m}_${s} = vec4<f32>();
    var high${m}_${s} = vec4<f32>();
    #if STAGE == "rest"
    if p.first_neuron > 0u && m0 + ${m}u < p.rows && col${s} < p.stride {
        let before = ((group * p.rows + m0 + ${m}u) * p.stride + col${s}) >> 2u;
        low${m}_${s} = partial[before];
        high${m}_${s} = partial[before + 1u];
    }
    #endif
    #endfor
    #endfor

    #if LISTED
    let all = min(listed[0], p.n);
    #else
    let all = p.n;
    #endif
    // Of group, group + groups, ..
    let count = (max(all, group) - group + p.groups - 1u) / p.groups;
    for (var first = 0u; first < count; first += ${NB}u) {
        let here = min(count - first, ${NB}u);
        if lane < ${NB // 32}u { atomicStore(&fires[lane], 0u); }
        #if GATES
        ${ products("gate", own, "here") }
        #else
        workgroupBarrier();
        #endif
        var scale = vec4<f32>(1.0);
        #if NORMED
        #for m in range(M)
        {
            var sum = 0.0;
            for (var s = 0u; s < ${"reduce_subgroups" if SUBGROUPS else "1u"}; s += 1u) { sum += squares[${m * PARTS}u + s]; }
            scale[${m}] = inverseSqrt(sum / f32(p.k) + p.eps);
        }
        #endfor
        #endif
        if lane < here {
            #if GATES
            var gates = vec4<f32>();
            #for m in range(M)
            gates[${m}] = dot_of(lane, ${m}u);
            #endfor
            gates *= scale;
            #if W == "i8"
            gates *= scales[3u * ${own("lane")}];
            #endif
            let a = activate4(gates);
            // Of magnitudes the bits are ordered as the values are, and NaN's are above all.
            let above = (bitcast<vec4<u32>>(a) & vec4<u32>(0x7fffffffu)) > vec4<u32>(p.threshold);
            #endif
            #if STAGE == "whole"
            #for m in range(M)
            actual[lane * ${M}u + ${m}u] = select(0.0, a[${m}], above[${m}]);
            #endfor
            if ${"any(above)" if M == 4 else "above.x" if M == 1 else "any(above." ~ "xyz"[:M] ~ ")"} {
                atomicOr(&fires[lane >> 5u], 1u << (lane & 31u));
            }
            #else
            let i = ${own("lane")};
            #for m in range(M)
            #if STAGE == "gates"
            if m0 + ${m}u < p.rows {
                gate_activations[(m0 + ${m}u) * p.n + i] = select(0.0, a[${m}], above[${m}]);
            }
            #else
            let a${m} = gate_activations[min(m0 + ${m}u, p.rows - 1u) * p.n + i];
            actual[lane * ${M}u + ${m}u] = a${m};
            if (bitcast<u32>(a${m}) & 0x7fffffffu) != 0u && i >= p.first_neuron && i < p.end_neuron {
                atomicOr(&fires[lane >> 5u], 1u << (lane & 31u));
            }
            #endif
            #endfor
            #endif
        }
        #if PAIRS
        workgroupBarrier();
        if lane < here {
            let bit = lane & 31u;
            let mask = atomicLoad(&fires[lane >> 5u]);
            if ((mask >> bit) & 1u) == 1u {
                var place = countOneBits(mask & ((1u << bit) - 1u));
                for (var w = 0u; w < (lane >> 5u); w += 1u) { place += countOneBits(atomicLoad(&fires[w])); }
                kept[place] = lane;
            }
        }
        if lane == 0u {
            var sum = 0u;
            #for w in range(NB // 32)
            sum += countOneBits(atomicLoad(&fires[${w}]));
            #endfor
            survivors = sum;
        }
        let alive = workgroupUniformLoad(&survivors);
        ${ products("pairs", fired, "alive") }
        if lane < alive {
            let own = kept[lane];
            #if W == "i8"
            let i = 3u * ${own("own")};
            let worth = scales[i + 1u] * scales[i + 2u];
            #else
            let worth = 1.0;
            #endif
            #for m in range(M)
            factors[lane * ${M}u + ${m}u] = actual[own * ${M}u + ${m}u] * (dot_of(lane, ${m}u) * scale[${m}] * worth);
            #endfor
        }
        workgroupBarrier();
        for (var j = 0u; j < alive; j += ${U}u) {
            #for u in range(U)
            let at${u} = min(j + ${u}u, alive - 1u);
            let down${u} = row_of_pairs(${fired("at" ~ u)}) + p.k;
            #for s in range(SPANS)
            let d${u}_${s} = chunk_pairs(down${u}, col${s});
            #endfor
            #endfor
            #for u in range(U)
            #for m in range(M)
            {
                let factor = select(0.0, factors[at${u} * ${M}u + ${m}u], j + ${u}u < alive);
                #for s in range(SPANS)
                low${m}_${s} = fma(vec4<f32>(factor), d${u}_${s}.low, low${m}_${s});
                high${m}_${s} = fma(vec4<f32>(factor), d${u}_${s}.high, high${m}_${s});
                #endfor
            }
            #endfor
            #endfor
        }
        #else
        workgroupBarrier();
        #endif
    }

    #if PAIRS
    #for m in range(M)
    if m0 + ${m}u < p.rows {
        let at = (group * p.rows + m0 + ${m}u) * p.stride;
        #for s in range(SPANS)
        if col${s} < p.stride {
            partial[(at + col${s}) >> 2u] = low${m}_${s};
            partial[((at + col${s}) >> 2u) + 1u] = high${m}_${s};
        }
        #endfor
    }
    #endfor
    #endif
}
