<#
A total order of floats with their places, exact in integers: greater first, ties by the lower index, NaN (of any sign)
before all numbers, -0 and 0 equal.

  ${ order.functions() }
defines key_of(x) -> u32 (at least 0x007fffff, so that 0 is free for padding), value_of(key) -> f32, and
before(a, b) -> bool over vec2<u32>(key, index).
#>
#macro functions()
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u { return 0xffffffffu; }
    if magnitude == 0u { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

fn before(a: vec2<u32>, b: vec2<u32>) -> bool { return a.x > b.x || (a.x == b.x && a.y < b.y); }
#endmacro

<# workgroup_best(own, lane) -> vec2<u32>: the first of a workgroup's pairs, to every invocation. #>
#macro best(wg)
var<workgroup> best_scratch: array<vec2<u32>, ${wg}>;
fn workgroup_best(own: vec2<u32>, lane: u32) -> vec2<u32> {
    best_scratch[lane] = own;
    workgroupBarrier();
    for (var half = ${wg // 2}u; half > 0u; half >>= 1u) {
        if lane < half {
            let other = best_scratch[lane + half];
            if before(other, best_scratch[lane]) { best_scratch[lane] = other; }
        }
        workgroupBarrier();
    }
    return best_scratch[0];
}
#endmacro
