// Neurons that a predictor expects to fire, ascending: listed = how many, then which (PowerInfer, arXiv 2312.12456).
//
// scores: [rows, n], f32. A neuron is listed if its score is not at or below the threshold in some row, so NaN is. One
// workgroup, an invocation for four neighbouring neurons of a block of 4 WG; a prefix sum says where they go.
#import "lib/tensor.wgsl" as t
#import "lib/compact.wgsl" as compact

struct Params {
    n: u32,
    rows: u32,
    threshold: f32,
}
${ t.params(PARAMS) }
${ t.words(1, "scores", "f32") }
${ t.words(2, "listed", "u32", "read_write") }
${ compact.scratch(WG) }

@compute @workgroup_size(${WG})
fn main(@builtin(local_invocation_index) lane: u32) {
    var before = 0u;
    for (var first = 0u; first < p.n; first += ${4 * WG}u) {
        let own = first + lane * 4u;
        var mask = 0u;
        for (var c = 0u; c < 4u; c += 1u) {
            for (var row = 0u; row < p.rows && own + c < p.n; row += 1u) {
                if !(scores[row * p.n + own + c] <= p.threshold) { mask |= 1u << c; }
            }
        }
        ${ compact.ranks(WG, "countOneBits(mask)", "rank", "all") }
        for (var c = 0u; c < 4u; c += 1u) {
            if ((mask >> c) & 1u) == 1u {
                listed[1u + before + rank] = own + c;
                rank += 1u;
            }
        }
        before += all;
    }
    if lane == 0u { listed[0] = before; }
}
