// Merges neighbouring sorted runs of every row, two into one, keeping the first `keep` of each result: a step of top-k.
//
// source: [row][run][length] of (key, index), greatest first. OUT pairs: [row][pair of runs][keep]; final: one pair a row,
// values (f32) and indices [row][keep]. One invocation an element: its place in the result is its place in its run plus
// the number of elements of the other run that come before it, found by bisection. Only a row's last run ends in padding,
// so that no two of a pair are equal and every place is taken once. A missing right run is padding.
#import "lib/tensor.wgsl" as t
#import "lib/order.wgsl" as order

struct Params {
    total: u32,
    runs: u32,
    pairs: u32,
    length: u32,
    keep: u32,
    values_offset: u32,
    indices_offset: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "source", "vec2<u32>") }
#if OUT == "pairs"
${ t.words(2, "merged", "vec2<u32>", "read_write") }
#else
${ t.words(2, "values", "f32", "read_write") }
${ t.words(3, "indices", "u32", "read_write") }
#endif
${ order.functions() }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (workgroup.y * grid.x + workgroup.x) * ${WG}u + lane;
    if id >= p.total { return; }
    let pair = id / (2u * p.length);
    let side = (id / p.length) & 1u;
    let at = id % p.length;
    let row = pair / p.pairs;
    let left = (pair % p.pairs) * 2u;
    let base = (row * p.runs + left) * p.length;
    let missing = left + 1u == p.runs;

    var own = vec2<u32>(0u, 0xffffffffu);
    if !(missing && side == 1u) { own = source[base + side * p.length + at]; }
    // How many of the other run come before: all below `low` do, none from `high` on does.
    var low = 0u;
    var high = p.length;
    if missing {
        // Everything on the left comes before padding, and no padding before anything.
        low = side * p.length;
        high = low;
    }
    let other = base + (1u - side) * p.length;
    while low < high {
        let middle = (low + high) >> 1u;
        let theirs = source[other + middle];
        if before(theirs, own) { low = middle + 1u; } else { high = middle; }
    }
    let place = at + low;
    if place < p.keep {
        #if OUT == "pairs"
        merged[pair * p.keep + place] = own;
        #else
        values[p.values_offset + pair * p.keep + place] = value_of(own.x);
        indices[p.indices_offset + pair * p.keep + place] = own.y;
        #endif
    }
}
