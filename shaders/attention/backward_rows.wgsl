// What attention's gradients need of every row: lse, and delta = sum(dout * out), which is the mean of dout v'
// under the row's weights (FlashAttention-2, arXiv 2307.08691).
//
// out, dout [batch, heads, q_len, DV], each with strides of its own and adjacent elements in the last dimension; lse
// [batch, heads, q_len]; rows [batch, heads, q_len] of two. A row that saw nothing has zero for its logarithm, which is
// minus infinity: its weights are zero under any.
//
// L adjacent invocations share four rows and read neighbouring elements; bound by reading out and dout.
#import "lib/tensor.wgsl" as t
#import "lib/reduce.wgsl" as reduce

struct Params {
    out_offset: u32,
    out_batch: u32,
    out_head: u32,
    out_row: u32,
    dout_offset: u32,
    dout_batch: u32,
    dout_head: u32,
    dout_row: u32,
    lse_offset: u32,
    heads: u32,
    q_len: u32,
    // batch * heads * q_len
    count: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "out", OUT, VEC) }
${ t.input(2, "dout", O, VEC) }
${ t.words(3, "lse", "f32") }
${ t.words(4, "rows", "vec2<f32>", "read_write") }
${ reduce.group_sum(REDUCE, WG, L) }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
${ reduce.group_arguments(REDUCE) }
) {
    let lane = ${ reduce.group_lane(REDUCE) };
    let first = ((workgroup.y * grid.x + workgroup.x) * ${WG // L}u + lane / ${L}u) * 4u;
    let member = lane % ${L}u;
    var partial = vec4<f32>();
    #for r in range(4)
    {
        let row = min(first + ${r}u, p.count - 1u);
        let head = row / p.q_len % p.heads;
        let batch = row / p.q_len / p.heads;
        let i = row % p.q_len;
        let out_at = p.out_offset + batch * p.out_batch + head * p.out_head + i * p.out_row;
        let dout_at = p.dout_offset + batch * p.dout_batch + head * p.dout_head + i * p.dout_row;
        for (var col = member * 4u; col < ${DV}u; col += ${L * 4}u) {
            let left = ${DV}u - col;
            partial[${r}] += dot(load_some_out(out_at + col, left), load_some_dout(dout_at + col, left));
        }
    }
    #endfor
    let delta = group_sum(partial, lane);
    #for r in range(4)
    if member == ${r % L}u && first + ${r}u < p.count {
        let l = lse[p.lse_offset + first + ${r}u];
        // Minus infinity by its bits: devices may assume that there is none.
        let known = select(l, 0.0, bitcast<u32>(l) == 0xff800000u);
        rows[first + ${r}u] = vec2<f32>(known, delta[${r}]);
    }
    #endfor
}
