// The best of each row's chunks, after argmax: pairs[row * chunks + chunk] are (key, index); index[row], and value[row]
// (f32) where asked for, are written. One workgroup a row.
#import "lib/tensor.wgsl" as t
#import "lib/order.wgsl" as order

struct Params {
    rows: u32,
    chunks: u32,
    index_offset: u32,
    value_offset: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "pairs", "vec2<u32>") }
${ t.words(2, "index", "u32", "read_write") }
#if OUT == "value"
${ t.words(3, "value", "f32", "read_write") }
#endif
${ order.functions() }
${ order.best(WG) }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    let chunks = select(0u, p.chunks, row < p.rows);
    var best = vec2<u32>(0u, 0xffffffffu);
    for (var c = lane; c < chunks; c += ${WG}u) {
        let other = pairs[row * p.chunks + c];
        if before(other, best) { best = other; }
    }
    best = workgroup_best(best, lane);
    if lane == 0u && row < p.rows {
        index[p.index_offset + row] = best.y;
        #if OUT == "value"
        value[p.value_offset + row] = value_of(best.x);
        #endif
    }
}
