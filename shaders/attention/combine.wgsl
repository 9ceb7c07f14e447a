// Merges what decode.wgsl left of each split of the keys: out = sum o_s 2^(m_s - m) / sum l_s 2^(m_s - m).
//
// partial [batch, heads, q_len, splits]: each (m, l, -, -), then DV unnormalised values in groups of four. A workgroup
// has one row: `CP` columns of four elements by WG / CP strides through the splits.
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/reduce.wgsl" as reduce
#set DV4 = (DV + 3) // 4
#set TEAMS = WG // CP

${ attention.params() }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.words(1, "partial", "vec4<f32>") }
${ t.output(2, "out", O, VEC) }
#if LSE == 1
${ t.words(3, "lse", "f32", "read_write") }
#endif
${ attention.functions("none", 0, "full") }
${ reduce.scratch(REDUCE, WG) }
${ reduce.function("max", REDUCE, WG) }

var<workgroup> pool: array<vec4<f32>, ${WG}>;
var<workgroup> sums: array<f32, ${TEAMS}>;

@compute @workgroup_size(${WG})
fn main(
    ${ reduce.arguments(REDUCE) }
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    ${ reduce.begin(REDUCE) }
    let query = workgroup.x;
    let head = workgroup.y;
    let batch = workgroup.z;
    let place = (batch * grid.y + head) * grid.x + query;
    let base = place * p.splits * ${DV4 + 1}u;
    var own = LOWEST;
    for (var s = lane; s < p.splits; s += ${WG}u) {
        own = max(own, partial[base + s * ${DV4 + 1}u].x);
    }
    let m = workgroup_max(own, lane);
    let c = lane % ${CP}u;
    let team = lane / ${CP}u;
    var l = 0.0;
    var total = vec4<f32>();
    for (var s = team; s < p.splits; s += ${TEAMS}u) {
        let at = base + s * ${DV4 + 1}u;
        let state = partial[at];
        let shrink = exp2(state.x - m);
        l += state.y * shrink;
        total += partial[at + 1u + min(c, ${DV4 - 1}u)] * shrink;
    }
    pool[lane] = total;
    if c == 0u { sums[team] = l; }
    workgroupBarrier();
    if lane < ${DV4}u {
        l = 0.0;
        total = vec4<f32>();
        for (var g = 0u; g < ${TEAMS}u; g += 1u) {
            l += sums[g];
            total += pool[g * ${CP}u + lane];
        }
        // A row that sees nothing is zero.
        let inverse = select(1.0 / l, 0.0, l == 0.0);
        let at = p.out_offset + batch * p.out_batch + head * p.out_head + query * p.out_row;
        store_some_out(at + lane * 4u, ${DV}u - lane * 4u, total * inverse);
        #if LSE == 1
        if lane == 0u { lse[p.lse_offset + place] = log_sum(m, l); }
        #endif
    }
}
