// Which columns of x have an element of magnitude `threshold` or more: found[strip, k / 8] has a bit for each of eight columns, over
// a strip of `strip` rows. NaN is none of them.
//
// An invocation goes down a strip's rows with eight columns, four rows at a time. x: rows of adjacent elements, their length a multiple of four.
// gemm8/outliers_list.wgsl puts the strips together: no atomics, the same result every time.
#import "lib/tensor.wgsl" as t

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    strip: u32,
    threshold: f32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, VEC) }
${ t.words(2, "found", "u32", "read_write") }

fn largest(most: vec4<f32>, row: u32, col: u32) -> vec4<f32> {
    return max(most, abs(load_some_x(p.x_offset + row * p.x_stride + col, 4u)));
}

fn bits(most: vec4<f32>) -> u32 {
    let b = vec4<u32>(most >= vec4<f32>(p.threshold)) << vec4<u32>(0u, 1u, 2u, 3u);
    return b.x | b.y | b.z | b.w;
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let col = (workgroup.x * ${WG}u + lane) * 8u;
    if col >= p.cols { return; }
    // Of a row of an odd number of fours the last is looked at twice.
    let other = min(col + 4u, p.cols - 4u);
    let end = min((workgroup.y + 1u) * p.strip, p.rows);
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var row = workgroup.y * p.strip; row < end; row += 4u) {
        #for r in range(4)
        low = largest(low, min(row + ${r}u, end - 1u), col);
        high = largest(high, min(row + ${r}u, end - 1u), other);
        #endfor
    }
    found[workgroup.y * ((p.cols + 7u) / 8u) + col / 8u] = bits(low) | select(bits(high) << 4u, 0u, other == col);
}
