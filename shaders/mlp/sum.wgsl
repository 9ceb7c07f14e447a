// y[m, n] = F(sum_g partial[g, m, n]) + residual[m, n]; GATED: F(gate) * up, where a row of partial is n gates, then n ups.
//
// partial: [parts, rows, stride] of f32, which neurons.wgsl and inputs.wgsl leave; rows begin at multiples of four, n gates
// apart from n ups by `up` elements. A workgroup has L groups of four columns of a row; WG / L invocations go through the
// parts of each, AHEAD loads in flight, and add up through workgroup memory, always in the same order.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/reduce.wgsl" as reduce

#set TEAMS = WG // L

struct Params {
    n: u32,
    rows: u32,
    parts: u32,
    stride: u32,
    up: u32,
    y_offset: u32,
    y_stride: u32,
    residual_offset: u32,
    residual_stride: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.words(1, "partial", "vec4<f32>") }
#if RESIDUAL == "inout"
${ t.inout(2, "y", Y, VEC) }
#else
${ t.output(2, "y", Y, VEC) }
#endif
#if RESIDUAL != "none" and RESIDUAL != "inout"
${ t.input(3, "residual", RESIDUAL, VEC) }
#endif
${ activation.functions(F) }

${ reduce.column_sum(WG, L) }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let col = (workgroup.x * ${L}u + lane % ${L}u) * 4u;
    let row = workgroup.z;
    let at = row * p.stride + min(col, p.stride - 4u);
    var sum = vec4<f32>();
    #if GATED == 1
    var sum_up = vec4<f32>();
    let at_up = row * p.stride + min(p.up + col, p.stride - 4u);
    #endif
    for (var g = lane / ${L}u; g < p.parts; g += ${TEAMS * AHEAD}u) {
        #for e in range(AHEAD)
        let g${e} = g + ${e * TEAMS}u;
        let from${e} = min(g${e}, p.parts - 1u) * p.rows * p.stride;
        let part${e} = partial[(from${e} + at) >> 2u];
        #if GATED == 1
        let part_up${e} = partial[(from${e} + at_up) >> 2u];
        #endif
        #endfor
        #for e in range(AHEAD)
        if g${e} < p.parts {
            sum += part${e};
            #if GATED == 1
            sum_up += part_up${e};
            #endif
        }
        #endfor
    }
    var y = activate4(column_sum(sum, lane));
    #if GATED == 1
    y *= column_sum(sum_up, lane);
    #endif
    if lane >= ${L}u || col >= p.n { return; }
    let n = min(p.n - col, 4u);
    let to = p.y_offset + row * p.y_stride + col;
    #if RESIDUAL == "inout"
    y += load_some_y(to, n);
    #elif RESIDUAL != "none"
    y += load_some_residual(p.residual_offset + row * p.residual_stride + col, n);
    #endif
    store_some_y(to, n, y);
}
