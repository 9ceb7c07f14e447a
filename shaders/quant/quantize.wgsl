// A quantised matrix of x: scales, zero points and codes, the same bits as src/quant/quantize.rs makes of it.
//
// x: [rows, cols], rows of adjacent elements, `stride` apart. w: words, as src/quant/layout.rs has them.
// BY "group": an invocation has a group (of at most a few hundred elements); with an outer scale, a workgroup has the groups
// of one. BY "workgroup": a workgroup has a group (a row, a block, all). Elements are read twice. Words that hold numbers of
// several groups are changed by two atomic operations; codes are stored in whole words, 32 elements at a time.
//
// Everything that decides is exact in f32: see the head of quantize.rs for the rules.
#import "lib/tensor.wgsl" as t

#set INT = CODE in ["int2", "int3", "int4", "int5", "int6", "int8"]
#set FRACTION = {"e4m3": 3, "e5m2": 2, "e2m1": 1}[CODE] if not INT and CODE != "nf4" else 0
#set BIAS = {"e4m3": 7, "e5m2": 15, "e2m1": 1}[CODE] if FRACTION else 0
#set LAST = {"e4m3": 126, "e5m2": 123, "e2m1": 7}[CODE] if FRACTION else 0
#set NUMBERS = 1 if ZERO == "none" else 2

struct Params {
    rows: u32,
    cols: u32,
    padded: u32,
    x_offset: u32,
    x_stride: u32,
    // Groups side by side and in all, and their size.
    across: u32,
    groups: u32,
    group_rows: u32,
    group_cols: u32,
    row: u32,
    high: u32,
    high_row: u32,
    scales: u32,
    outer: u32,
    outer_row: u32,
    // The largest level, and reciprocals: of the steps from zero to it, or from the least to it; of 127 times that.
    most: f32,
    inverse: f32,
    inverse_outer: f32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, 1) }
${ t.words(2, "w", "atomic<u32>", "read_write") }

fn tame(v: f32) -> f32 {
    let bits = bitcast<u32>(v);
    let magnitude = min(bits & 0x7fffffffu, ${253 * 8388608}u);
    return bitcast<f32>(select(magnitude | (bits & 0x80000000u), 0u, magnitude < ${27 * 8388608}u));
}

fn round_up(v: f32, bits: u32) -> f32 {
    let mask = (1u << (24u - bits)) - 1u;
    return bitcast<f32>((bitcast<u32>(v) + mask) & ~mask);
}

fn round_up_f16(v: f32) -> f32 {
    if v < ${1 / 16384} { return ceil(v * 16777216.0) * ${1 / 16777216}; }
    return min(round_up(v, 11u), 65504.0);
}

// The bits of a number that f16 has.
fn f16_bits(v: f32) -> u32 { return pack2x16float(vec2<f32>(v, 0.0)) & 0xffffu; }

fn nearest_integer(v: f32, scale: f32, most: f32) -> i32 {
    let code = clamp(round(v * (1.0 / scale)), -most, most);
    let odd = (i32(code) & 1) == 1;
    let above = (code + 0.5) * scale;
    let below = (code - 0.5) * scale;
    let up = v > above || (odd && v == above);
    let down = v < below || (odd && v == below);
    return clamp(i32(code) + i32(up) - i32(down), -i32(most), i32(most));
}

#if INT
#set BITS = LOW + HIGH
fn code_of(value: i32) -> u32 {
    let clamped = clamp(value, -${2 ** (BITS - 1)}, ${2 ** (BITS - 1) - 1});
    #if BITS == 8
    return bitcast<u32>(clamped) & 0xffu;
    #else
    return u32(clamped + ${2 ** (BITS - 1)});
    #endif
}
fn nearest(v: f32, scale: f32) -> u32 { return code_of(nearest_integer(v, scale, p.most)); }
#set NOTHING = 0 if BITS == 8 else 2 ** (BITS - 1)
#elif CODE == "nf4"
#set NOTHING = 7
fn nearest(v: f32, scale: f32) -> u32 {
    var code = 0u;
    #for threshold in nf4_thresholds()
    code += u32(v > ${threshold} * scale);
    #endfor
    return code;
}
#else
#set NOTHING = 0
fn level(code: u32) -> f32 {
    let subnormal = f32(code) * ${2.0 ** (1 - BIAS - FRACTION)};
    let normal = bitcast<f32>((((code >> ${FRACTION}u) + ${127 - BIAS}u) << 23u) | ((code & ${2 ** FRACTION - 1}u) << ${23 - FRACTION}u));
    return select(normal, subnormal, code < ${2 ** FRACTION}u);
}
fn middle(code: u32, scale: f32) -> f32 { return 0.5 * (level(code) + level(code + 1u)) * scale; }
fn nearest(v: f32, scale: f32) -> u32 {
    let magnitude = abs(v);
    let close = min(magnitude * (1.0 / scale), level(${LAST}u));
    let exponent = max(bitcast<u32>(close) >> 23u, ${128 - BIAS}u);
    let units = close * bitcast<f32>((${254 + FRACTION}u - exponent) << 23u);
    var code = min(u32(round(units)) + ((exponent - ${128 - BIAS}u) << ${FRACTION}u), ${LAST}u);
    let odd = (code & 1u) == 1u;
    var up = false;
    if code < ${LAST}u {
        let above = middle(code, scale);
        up = magnitude > above || (odd && magnitude == above);
    }
    var down = false;
    if code > 0u {
        let below = middle(code - 1u, scale);
        down = magnitude < below || (odd && magnitude == below);
    }
    code = code + u32(up) - u32(down);
    return select(code, code | ${2 ** (LOW - 1)}u, v < 0.0 && code > 0u);
}
#endif

fn put(at: u32, bit: u32, mask: u32, value: u32) {
    atomicAnd(&w[at], ~(mask << bit));
    atomicOr(&w[at], value << bit);
}
fn put_number(group: u32, which: u32, value: u32) {
    let i = group * ${NUMBERS}u + which;
    #if SCALE == "f32"
    atomicStore(&w[p.scales + i], value);
    #elif SCALE == "f16"
    put(p.scales + i / 2u, i % 2u * 16u, 0xffffu, value);
    #else
    put(p.scales + i / 4u, i % 4u * 8u, 0xffu, value);
    #endif
}

#if BY == "workgroup"
var<workgroup> ranges: array<vec2<f32>, ${WG}>;
#else
// Of an outer scale.
var<workgroup> largest: array<f32, ${WG}>;
#endif

// The least and the largest number of part of a group, with zero among them.
fn range_of(group: u32, first: u32, step: u32) -> vec2<f32> {
    let top = group / p.across * p.group_rows;
    let left = group % p.across * p.group_cols;
    let wide = min(p.group_cols, p.cols - left);
    let count = min(p.group_rows, p.rows - top) * wide;
    var range = vec2<f32>();
    for (var i = first; i < count; i += step) {
        let v = tame(load_x(p.x_offset + (top + i / wide) * p.x_stride + left + i % wide));
        range = vec2<f32>(min(range.x, v), max(range.y, v));
    }
    return range;
}

// Numbers of a group (by the invocation that `writes`) and the codes of part of it.
fn encode(group: u32, range: vec2<f32>, outer: f32, writes: bool, first: u32, step: u32) {
    let magnitude = abs(max(range.y, -range.x));
    #if SCALE == "byte_f32"
    var byte = 0;
    if outer > 0.0 && magnitude > 0.0 { byte = max(nearest_integer(magnitude, outer * p.most, 127.0), 1); }
    let scale = f32(byte) * outer;
    if writes { put_number(group, 0u, u32(byte)); }
    #else
    #if ZERO == "none"
    let ideal = magnitude * p.inverse;
    #else
    let ideal = (range.y - range.x) * p.inverse;
    #endif
    #if SCALE == "f32"
    let scale = round_up(max(ideal, bitcast<f32>(${27 * 8388608}u)), 11u);
    if writes { put_number(group, 0u, bitcast<u32>(scale)); }
    #elif SCALE == "f16"
    let scale = round_up_f16(ideal);
    if writes { put_number(group, 0u, f16_bits(scale)); }
    #else
    let scale = round_up(max(ideal, bitcast<f32>(${27 * 8388608}u)), 1u);
    if writes { put_number(group, 0u, bitcast<u32>(scale) >> 23u); }
    #endif
    #endif
    #if ZERO == "point"
    var point = 0;
    if scale > 0.0 { point = -i32(p.most) - 1 - nearest_integer(range.x, scale, p.most + p.most + 1.0); }
    if writes { put_number(group, 1u, ${"bitcast<u32>(f32(point))" if SCALE == "f32" else "f16_bits(f32(point))"}); }
    #elif ZERO == "min"
    // Zero has no sign, and compilers take 0 - 0 for -0.
    #if SCALE == "f32"
    let least = abs(range.x);
    if writes { put_number(group, 1u, select(bitcast<u32>(-least), 0u, least == 0.0)); }
    #else
    let least = round_up_f16(abs(range.x));
    if writes { put_number(group, 1u, select(f16_bits(-least), 0u, least == 0.0)); }
    #endif
    let minimum = -least;
    #endif
    let top = group / p.across * p.group_rows;
    let left = group % p.across * p.group_cols;
    // The last group of a row has its padding too.
    let right = select(left + p.group_cols, p.padded, group % p.across + 1u == p.across);
    let chunks = (right - left + 31u) / 32u;
    let count = min(p.group_rows, p.rows - top) * chunks;
    for (var i = first; i < count; i += step) {
        let row = top + i / chunks;
        let col = left + i % chunks * 32u;
        var low = array<u32, ${LOW}>();
        #if HIGH
        var high = array<u32, ${HIGH}>();
        #endif
        #for word in range(LOW)
        for (var j = 0u; j < ${32 // LOW}u; j += 1u) {
            let c = col + ${word * 32 // LOW}u + j;
            var code = ${NOTHING}u;
            if c < p.cols && ${"scale > 0.0" if ZERO != "min" else "true"} {
                let v = tame(load_x(p.x_offset + row * p.x_stride + c));
                #if ZERO == "none"
                code = nearest(v, scale);
                #elif ZERO == "point"
                code = code_of(nearest_integer(v, scale, p.most + p.most + 1.0) + point);
                #else
                var steps = 0;
                if scale > 0.0 { steps = nearest_integer(v - minimum, scale, p.most + p.most + 1.0); }
                code = code_of(steps - i32(p.most) - 1);
                #endif
            }
            low[${word}] |= (code & ${2 ** LOW - 1}u) << (j * ${LOW}u);
            #if HIGH
            #set first_bit = word * 32 // LOW * HIGH
            high[${first_bit // 32}] |= (code >> ${LOW}u) << (${first_bit % 32}u + j * ${HIGH}u);
            #endif
        }
        if col + ${word * 32 // LOW}u < p.padded {
            atomicStore(&w[row * p.row * 4u + col / ${32 // LOW}u + ${word}u], low[${word}]);
        }
        #endfor
        #for word in range(HIGH)
        atomicStore(&w[p.high + row * p.high_row + col / ${32 // HIGH}u + ${word}u], high[${word}]);
        #endfor
    }
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup.y * grid.x + workgroup.x;
    #if BY == "workgroup"
    if number >= p.groups { return; }
    ranges[lane] = range_of(number, lane, ${WG}u);
    workgroupBarrier();
    var range = vec2<f32>();
    for (var i = 0u; i < ${WG}u; i += 1u) {
        range = vec2<f32>(min(range.x, ranges[i].x), max(range.y, ranges[i].y));
    }
    encode(number, range, 0.0, lane == 0u, lane, ${WG}u);
    #elif SCALE == "byte_f32"
    let row = number / p.outer_row;
    if row >= p.rows { return; }
    let first = number % p.outer_row * ${OUTER}u;
    let last = min(first + ${OUTER}u, p.across);
    var most = 0.0;
    for (var i = first + lane; i < last; i += ${WG}u) {
        let range = range_of(row * p.across + i, 0u, 1u);
        most = max(most, abs(max(range.y, -range.x)));
    }
    largest[lane] = most;
    workgroupBarrier();
    most = 0.0;
    for (var i = 0u; i < ${WG}u; i += 1u) { most = max(most, largest[i]); }
    var outer = 0.0;
    if most > 0.0 { outer = round_up(max(most * p.inverse_outer, bitcast<f32>(${27 * 8388608}u)), 5u); }
    if lane == 0u { atomicStore(&w[p.outer + number], bitcast<u32>(outer)); }
    for (var i = first + lane; i < last; i += ${WG}u) {
        let group = row * p.across + i;
        encode(group, range_of(group, 0u, 1u), outer, true, 0u, 1u);
    }
    #else
    let group = number * ${WG}u + lane;
    if group >= p.groups { return; }
    encode(group, range_of(group, 0u, 1u), 0.0, true, 0u, 1u);
    #endif
}
