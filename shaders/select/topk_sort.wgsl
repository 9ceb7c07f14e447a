// Sorts every block of BLOCK elements of a row, greatest first, and keeps the first `keep` of each: the first step of
// top-k, and a later one where few of each block are kept.
//
// SOURCE x: elements of x (rows of `cols` adjacent elements, `stride` apart); pairs: (key, index) of an earlier step,
// `cols` a row. OUT pairs: runs [row][block][keep] of (key, index); final: one block a row, values (f32) and indices
// [row][keep]. One workgroup a block: a bitonic sort in workgroup memory (Batcher 1968), exact and the same for every
// input. Keys and ties: lib/order.wgsl. Padding is key 0, behind every element.
//
// Dropped: radix selection of the k-th key, whose histograms need atomics and several passes over x, and which leaves
// ties and the order of the selected to a second algorithm.
#import "lib/tensor.wgsl" as t
#import "lib/order.wgsl" as order

struct Params {
    workgroups: u32,
    blocks: u32,
    cols: u32,
    keep: u32,
    x_offset: u32,
    x_stride: u32,
    values_offset: u32,
    indices_offset: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
#if SOURCE == "x"
${ t.input(1, "x", X, 1) }
#else
${ t.words(1, "source", "vec2<u32>") }
#endif
#if OUT == "pairs"
${ t.words(2, "runs", "vec2<u32>", "read_write") }
#else
${ t.words(2, "values", "f32", "read_write") }
${ t.words(3, "indices", "u32", "read_write") }
#endif
${ order.functions() }

var<workgroup> items: array<vec2<u32>, ${BLOCK}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    let row = id / p.blocks;
    let start = (id % p.blocks) * ${BLOCK}u;
    for (var i = lane; i < ${BLOCK}u; i += ${WG}u) {
        var item = vec2<u32>(0u, 0xffffffffu);
        let at = start + i;
        if at < p.cols && id < p.workgroups {
            #if SOURCE == "x"
            item = vec2<u32>(key_of(load_x(p.x_offset + row * p.x_stride + at)), at);
            #else
            item = source[row * p.cols + at];
            #endif
        }
        items[i] = item;
    }
    workgroupBarrier();
    for (var size = 2u; size <= ${BLOCK}u; size <<= 1u) {
        for (var stride = size >> 1u; stride > 0u; stride >>= 1u) {
            for (var i = lane; i < ${BLOCK // 2}u; i += ${WG}u) {
                let low = ((i & ~(stride - 1u)) << 1u) | (i & (stride - 1u));
                let a = items[low];
                let b = items[low + stride];
                // Runs alternate between descending and ascending until the last, which descends.
                if before(b, a) == ((low & size) == 0u) {
                    items[low] = b;
                    items[low + stride] = a;
                }
            }
            workgroupBarrier();
        }
    }
    if id >= p.workgroups { return; }
    for (var i = lane; i < p.keep; i += ${WG}u) {
        #if OUT == "pairs"
        runs[id * p.keep + i] = items[i];
        #else
        values[p.values_offset + id * p.keep + i] = value_of(items[i].x);
        indices[p.indices_offset + id * p.keep + i] = items[i].y;
        #endif
    }
}
