// The greatest element of every row: its index, and its value where asked for. Ties: the lowest index; NaN counts as
// greater than every number.
//
// x: rows of `cols` adjacent elements, `stride` apart. A workgroup reads `chunk` elements (a multiple of four) of a row,
// UNROLL groups of four at a time. OUT index: one chunk a row, index[row] is written; value: value[row] (f32) too; pairs:
// every chunk's (key, index) goes to pairs[row * chunks + chunk], for argmax_merge.
#import "lib/tensor.wgsl" as t
#import "lib/order.wgsl" as order

struct Params {
    workgroups: u32,
    chunks: u32,
    chunk: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    index_offset: u32,
    value_offset: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, VEC) }
#if OUT == "pairs"
${ t.words(2, "pairs", "vec2<u32>", "read_write") }
#else
${ t.words(2, "index", "u32", "read_write") }
#endif
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
    let id = workgroup.y * grid.x + workgroup.x;
    let row = id / p.chunks;
    let start = (id % p.chunks) * p.chunk;
    // Workgroups beyond the last read nothing.
    let end = select(start, min(start + p.chunk, p.cols), id < p.workgroups);
    let x = p.x_offset + row * p.x_stride;
    var best = vec2<u32>(0u, 0xffffffffu);
    for (var at = start + lane * 4u; at < end; at += ${4 * WG * UNROLL}u) {
        #for u in range(UNROLL)
        let i${u} = at + ${u * 4 * WG}u;
        let n${u} = min(max(end, i${u}) - i${u}, 4u);
        let v${u} = load_some_x(x + i${u}, n${u});
        #endfor
        // Indices ascend, so only a greater key takes the place of the best.
        #for u in range(UNROLL)
        #for c in range(4)
        {
            let key = key_of(v${u}[${c}]);
            if ${c}u < n${u} && key > best.x { best = vec2<u32>(key, i${u} + ${c}u); }
        }
        #endfor
        #endfor
    }
    best = workgroup_best(best, lane);
    if lane == 0u && id < p.workgroups {
        #if OUT == "pairs"
        pairs[id] = best;
        #else
        index[p.index_offset + row] = best.y;
        #endif
        #if OUT == "value"
        value[p.value_offset + row] = value_of(best.x);
        #endif
    }
}
