// The list of columns that any strip found (gemm8/outliers_scan.wgsl): columns[0] is how many, the columns follow in their order,
// at most `most`; slots[k] is a listed column's place in the list, counted from one, or 0.
//
// One workgroup: an invocation has a run of groups of eight columns; a prefix sum over the invocations says where its
// columns go.
#import "lib/tensor.wgsl" as t

struct Params {
    groups: u32,
    cols: u32,
    strips: u32,
    most: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "found", "u32") }
${ t.words(2, "columns", "u32", "read_write") }
${ t.words(3, "slots", "u32", "read_write") }

var<workgroup> counts: array<u32, ${WG}>;

fn any_strip(g: u32) -> u32 {
    var bits = 0u;
    for (var s = 0u; s < p.strips; s += 1u) { bits |= found[s * p.groups + g]; }
    return bits;
}

@compute @workgroup_size(${WG})
fn main(@builtin(local_invocation_index) lane: u32) {
    let run = (p.groups + ${WG - 1}u) / ${WG}u;
    let first = min(lane * run, p.groups);
    let end = min(first + run, p.groups);
    var own = 0u;
    for (var g = first; g < end; g += 1u) {
        let bits = any_strip(g);
        own += countOneBits(bits);
        // Kept for the second round.
        slots[g * 8u] = bits;
    }
    counts[lane] = own;
    workgroupBarrier();
    for (var step = 1u; step < ${WG}u; step *= 2u) {
        var before = 0u;
        if lane >= step { before = counts[lane - step]; }
        workgroupBarrier();
        counts[lane] += before;
        workgroupBarrier();
    }
    var next = counts[lane] - own;
    for (var g = first; g < end; g += 1u) {
        let bits = slots[g * 8u];
        for (var i = 0u; i < 8u; i += 1u) {
            var slot = 0u;
            if ((bits >> i) & 1u) == 1u && next < p.most {
                next += 1u;
                slot = next;
                columns[slot] = g * 8u + i;
            }
            if g * 8u + i < p.cols { slots[g * 8u + i] = slot; }
        }
    }
    if lane == ${WG - 1}u { columns[0] = min(counts[lane], p.most); }
}
