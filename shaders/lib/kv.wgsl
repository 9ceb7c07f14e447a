<#
Rows of keys and values in every format they are stored in. A row is read by units of `vec` elements (16 bytes at
most), which stay packed until they are used, so that many can be in flight.

  ${ kv.input(2, "k", FORMAT, VEC) }              the binding `k`
  raw_k(i)                                        the unit at element i, a multiple of VEC
  ${ kv.four(FORMAT, VEC, "unit", g) }            its elements 4g .. 4g + 3 as vec4<f32>; those of f8e4m3 divided by 256
  word_k(i) -> u32                                the i-th word of the memory: scales
  ${ kv.prelude([K, V]) }                         once a kernel: what the formats decode with

For matrix units (lib/fragments.wgsl, with its halves), of a word of four bytes:
  ${ kv.pair(FORMAT, "even", "w") }               bytes 0 and 2 as two f16 ("odd": 1 and 3); those of f8e4m3 divided by 256
  ${ kv.pair("i8", "even", "w", [s, t]) }         the same times the halves of s; t is -1152 s
  ${ kv.pairs([K, V], SCALED) }                   once a kernel; SCALED: with factors too

With VEC 1 (rows of any length, floats alone) `four` has one group a unit and `raw_some_k(i, n)` reads it.

FORMAT is f32, f16, bf16, i8, f8e4m3, f8e5m2. An E4M3 number is an f16 number with the exponent's bias off by 8, so
that it and its subnormals become f16 by shifts, divided by 256. (Its NaN is then 480.) E5M2 is the upper half of f16.

Tried for i8 (H100, 131072 keys, four keys a step): adding the byte to 2^23 as f32, 156 to 161 us; to 1024 as f16, 149 to
157 us; unpack4xI8, 154 to 156 us.
#>
#macro input(index, name, format, vec)
#if vec == 1
${ loads.input(index, name, format, 1) }
fn raw_some_${name}(i: u32, n: u32) -> vec4<f32> { return load_some_${name}(i, n); }
#else
#set words = vec * (4 if format == "f32" else 2 if format in ["f16", "bf16"] else 1) // 4
#if words == 4
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec4<u32>>;
fn raw_${name}(i: u32) -> vec4<u32> { return ${name}[i / ${vec}u]; }
fn word_${name}(i: u32) -> u32 { return ${name}[i >> 2u][i & 3u]; }
#elif words == 2
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec2<u32>>;
fn raw_${name}(i: u32) -> vec2<u32> { return ${name}[i / ${vec}u]; }
fn word_${name}(i: u32) -> u32 { return ${name}[i >> 1u][i & 1u]; }
#else
@group(0) @binding(${index}) var<storage, read> ${name}: array<u32>;
fn raw_${name}(i: u32) -> u32 { return ${name}[i / ${vec}u]; }
fn word_${name}(i: u32) -> u32 { return ${name}[i]; }
#endif
#endif
#endmacro
#import "lib/code8.wgsl" as code8
#import "lib/tensor.wgsl" as loads

#macro four(format, vec, unit, g)
#if vec == 1
${unit}
#elif format == "f32"
bitcast<vec4<f32>>(${unit})
#elif format == "f16"
f16_four(${unit}.${"xy" if g == 0 else "zw"})
#elif format == "bf16"
bf16_four(${unit}.${"xy" if g == 0 else "zw"})
#else
${format}_four(${unit}${"." ~ "xyzw"[g] if vec > 4 else ""})
#endif
#endmacro

#macro prelude(formats)
#if "f16" in formats
fn f16_four(w: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
#endif
#if "bf16" in formats
fn bf16_four(w: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}
#endif
#if "i8" in formats
fn i8_four(w: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(w)); }
#endif
#if "f8e4m3" in formats
${ code8.e4m3_odd() }
fn f8e4m3_four(w: u32) -> vec4<f32> {
    let even = e4m3_odd(w << 8u);
    let odd = e4m3_odd(w);
    return vec4<f32>(even.x, odd.x, even.y, odd.y);
}
#endif
#if "f8e5m2" in formats
fn f8e5m2_four(w: u32) -> vec4<f32> {
    let even = unpack2x16float((w << 8u) & 0xff00ff00u);
    let odd = unpack2x16float(w & 0xff00ff00u);
    return vec4<f32>(even.x, odd.x, even.y, odd.y);
}
#endif
#endmacro

#macro pair(format, side, word, factors=[])
${format}_${side}${"_times" if factors else ""}(${word}${", " ~ factors[0] ~ ", " ~ factors[1] if factors else ""})
#endmacro

#macro pairs(formats, scaled)
#if "i8" in formats
// With its sign turned a byte is b + 128; as the low bits of 1024 that is 1152 + b.
fn i8_even(w: u32) -> u32 { return less_halves((w & 0x00ff00ffu) ^ 0x64806480u, 1152.0); }
fn i8_odd(w: u32) -> u32 { return less_halves(((w >> 8u) & 0x00ff00ffu) ^ 0x64806480u, 1152.0); }
#if scaled
fn i8_even_times(w: u32, s: u32, t: u32) -> u32 { return fma_halves((w & 0x00ff00ffu) ^ 0x64806480u, s, t); }
fn i8_odd_times(w: u32, s: u32, t: u32) -> u32 { return fma_halves(((w >> 8u) & 0x00ff00ffu) ^ 0x64806480u, s, t); }
#endif
#endif
#if "f8e4m3" in formats
fn f8e4m3_odd(w: u32) -> u32 { return (w & 0x80008000u) | ((w >> 1u) & 0x3f803f80u); }
fn f8e4m3_even(w: u32) -> u32 { return ((w << 8u) & 0x80008000u) | ((w << 7u) & 0x3f803f80u); }
#endif
#if "f8e5m2" in formats
fn f8e5m2_odd(w: u32) -> u32 { return w & 0xff00ff00u; }
fn f8e5m2_even(w: u32) -> u32 { return (w << 8u) & 0xff00ff00u; }
#endif
#endmacro
