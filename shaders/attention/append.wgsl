// Writes rows of keys or values into a cache, in its format: x [batch, heads, n, D] to the tokens from `first` on of
// each sequence.
//
// memory: KvLayout's words. UP adjacent invocations (a power of two) have a row, 16 channels each: the row's or the
// block's largest magnitude goes through workgroup memory. Bit by bit what reference/kv.rs does on the CPU: only
// operations that WGSL rounds correctly, integers, and for int8 (whose division is not) exact comparisons with
// the nearest half steps. With ORDER 1, channel c of a stored row is channel order[head][c] of x: Accurate block
// quantization (arXiv 2403.20137) sorts keys' channels so that outliers share blocks.
#import "lib/tensor.wgsl" as t
#import "lib/pages.wgsl" as pages
#set ROWS = WG // UP
#set SIZE = 4 if K == "f32" else 2 if K in ["f16", "bf16"] else 1
#set ROW = (D * SIZE + 15) // 16 * 4
#set BLOCKS = (D + KB - 1) // KB if KB else 0

struct Params {
    x_offset: u32,
    x_batch: u32,
    x_head: u32,
    x_row: u32,
    heads: u32,
    n: u32,
    // Rows in all.
    count: u32,
    // The first token written, without a table.
    first: u32,
    page_size: u32,
    pages: u32,
    blocks: u32,
    batches: u32,
    // The word of the first scale.
    scales: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, VEC) }
${ t.words(2, "memory", "u32", "read_write") }
#if PAGE != "none"
${ t.words(3, "table", "u32") }
#endif
#if ORDER == 1
${ t.words(4, "order", "u32") }
#endif
${ pages.functions(PAGE) }

#if SCALE != "none"
var<workgroup> magnitudes: array<u32, ${WG}>;
#endif

#if K == "i8" and SCALE == "row"
// The integer nearest to x / scale, ties upwards.
fn nearest(x: f32, scale: f32) -> i32 {
    let code = clamp(round(x * (1.0 / scale)), -127.0, 127.0);
    let up = select(0.0, 1.0, x >= (code + 0.5) * scale);
    let down = select(0.0, 1.0, x < (code - 0.5) * scale);
    return i32(clamp(code + up - down, -127.0, 127.0));
}
#endif

#if K in ["f8e4m3", "f8e5m2"]
#set FRACTION = 3 if K == "f8e4m3" else 2
#set BIAS8 = 120 if K == "f8e4m3" else 112
// To nearest, ties to even; saturates.
fn float8(x: f32) -> u32 {
    let sign = (bitcast<u32>(x) >> 24u) & 0x80u;
    let bits = min(bitcast<u32>(x) & 0x7fffffffu, ${"0x43e00000u" if K == "f8e4m3" else "0x47600000u"});
    let half = ${2 ** (22 - FRACTION) - 1}u + ((bits >> ${23 - FRACTION}u) & 1u);
    let normal = ((bits + half) >> ${23 - FRACTION}u) - ${BIAS8 * 2 ** FRACTION}u;
    let subnormal = u32(round(bitcast<f32>(bits) * ${"512.0" if K == "f8e4m3" else "65536.0"}));
    return sign | select(subnormal, normal, (bits >> 23u) > ${BIAS8}u);
}
#endif

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (workgroup.y * grid.x + workgroup.x) * ${ROWS}u + lane / ${UP}u;
    let unit = lane % ${UP}u;
    let row = min(number, p.count - 1u);
    let token = row % p.n;
    let head = row / p.n % p.heads;
    let batch = row / p.n / p.heads;
    let source = p.x_offset + batch * p.x_batch + head * p.x_head + token * p.x_row;
    var values: array<vec4<f32>, 4>;
    #for i in range(4)
    {
        let c = unit * 16u + ${i * 4}u;
        let n = ${D}u - min(c, ${D}u);
        #if ORDER == 1
        #for j in range(4)
        if n > ${j}u { values[${i}].${"xyzw"[j]} = load_x(source + order[head * ${D}u + c + ${j}u]); }
        #endfor
        #else
        values[${i}] = load_some_x(source + c, n);
        #endif
    }
    #endfor
    let stored = stored_row(batch, head, ${"p.first" if PAGE == "none" else "table[batch] - p.n"} + token);
    #if SCALE != "none"
    var most = 0u;
    #for i in range(4)
    {
        let bits = bitcast<vec4<u32>>(values[${i}]) & vec4<u32>(0x7fffffffu);
        most = max(most, max(max(bits.x, bits.y), max(bits.z, bits.w)));
    }
    #endfor
    magnitudes[lane] = min(most, 0x7f7fffffu);
    workgroupBarrier();
    #if SCALE == "row"
    for (var i = 0u; i < ${UP}u; i += 1u) { most = max(most, magnitudes[lane - unit + i]); }
    most = min(most, 0x7f7fffffu);
    // Eleven significant bits: half integers times the scale are exact.
    let scale = bitcast<f32>(
        (max(bitcast<u32>(bitcast<f32>(most) * (1.0 / 127.0)), ${27 * 2 ** 23}u) + 0x1fffu) & 0xffffe000u);
    #else
    let first = unit / ${KB // 16}u * ${KB // 16}u;
    for (var i = 0u; i < ${KB // 16}u; i += 1u) {
        most = max(most, magnitudes[lane - unit + min(first + i, ${UP - 1}u)]);
    }
    let exponent = max(min(most, 0x7f7fffffu) >> 23u, 7u) - 6u;
    let inverse = bitcast<f32>((254u - exponent) << 23u);
    workgroupBarrier();
    magnitudes[lane] = exponent;
    workgroupBarrier();
    #endif
    #endif
    if number >= p.count || unit * 16u >= ${ROW * 4 // SIZE}u { return; }
    #for i in range(4)
    {
        let v = values[${i}];
        #set at = "stored * " ~ ROW ~ "u + unit * " ~ 4 * SIZE ~ "u + "
        #if K == "f32"
        if unit * 16u + ${i * 4}u < ${ROW}u {
            #for j in range(4)
            memory[${at ~ (4 * i + j)}u] = bitcast<u32>(v.${"xyzw"[j]});
            #endfor
        }
        #elif SIZE == 2
        if unit * 16u + ${i * 4}u < ${ROW * 2}u {
            memory[${at ~ 2 * i}u] = ${K}_word(v.xy);
            memory[${at ~ (2 * i + 1)}u] = ${K}_word(v.zw);
        }
        #elif K == "i8" and SCALE == "row"
        let code = vec4<i32>(nearest(v.x, scale), nearest(v.y, scale), nearest(v.z, scale), nearest(v.w, scale));
        memory[${at ~ i}u] = pack4xI8(code);
        #elif K == "i8"
        let code = vec4<i32>(clamp(round(v * inverse), vec4<f32>(-127.0), vec4<f32>(127.0)));
        memory[${at ~ i}u] = pack4xI8(code);
        #else
        memory[${at ~ i}u] = float8(v.x) | (float8(v.y) << 8u) | (float8(v.z) << 16u) | (float8(v.w) << 24u);
        #endif
    }
    #endfor
    #if SCALE == "row"
    if unit == 0u { memory[p.scales + stored] = bitcast<u32>(scale); }
    #elif SCALE == "block"
    // Four blocks a word.
    if unit % ${KB // 4}u == 0u {
        var word = 0u;
        let block = unit / ${KB // 16}u;
        for (var b = 0u; b < 4u && block + b < ${BLOCKS}u; b += 1u) {
            word |= magnitudes[lane + b * ${KB // 16}u] << (b * 8u);
        }
        memory[p.scales + stored * ${(BLOCKS + 3) // 4}u + block / 4u] = word;
    }
    #endif
}
