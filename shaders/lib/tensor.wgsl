<#
Bindings of a kernel: its parameters and its tensors.

  ${ t.params(PARAMS) }                 after `struct Params` (of u32, i32 and f32 alone): the variable `p`
  ${ t.input(1, "x", X) }               f32, f16 or bf16, read
  ${ t.output(2, "y", Y, VEC) }         written; with VEC 8, 4 or 2 by aligned groups of as many, with 1 by element
  ${ t.inout(2, "y", Y, VEC) }          read and written
  ${ t.input8(1, "w", W) }              read by aligned groups of eight, in 16-byte accesses; input with VEC 8 alike
  ${ t.words(3, "ids", "u32") }         plain 32-bit elements

Memory is seen as groups of four elements (16 bytes of f32, 8 of f16 and bf16), the widest access that every
element type has; with VEC 8 as groups of eight, and only what is marked so exists; with VEC 1 f32 elements one by one. For a tensor `x` there are then, all with element indices,
  load_x(i) -> f32                      any element
  load4_x(i) -> vec4<f32>               i a multiple of 4
  load2_x(i) -> vec2<f32>               i a multiple of 2
  load_some_x(i, n) -> vec4<f32>        n elements from i on, the rest zero; with VEC 4, i and n are multiples of 4
  load8_w(i) -> Eight                   input8, VEC 8: .low and .high of four elements; i a multiple of 8
  store_y(i, v)                         VEC 1 only: any element
  store4_y(i, v)                        VEC 4 only: i a multiple of 4
  store2_y(i, v)                        VEC 2 only (output): i a multiple of 2
  store8_y(i, low, high)                VEC 8 only: i a multiple of 8
  store_some_y(i, n, v)                 the first n of four, as load_some
Two elements of a 16-bit type share a word. With VEC 1 neighbours may belong to other invocations, so a store
replaces its half of the word by two atomic operations; planners choose VEC 1 only for ragged shapes.
#>
#macro params(tier)
#if tier == "immediate"
var<immediate> p: Params;
#else
@group(0) @binding(0) var<uniform> p: Params;
#endif
#endmacro

#macro words(index, name, type, access="read")
@group(0) @binding(${index}) var<storage, ${access}> ${name}: array<${type}>;
#endmacro

#macro input(index, name, dtype, vec=4)
#if vec == 8
${input8(index, name, dtype)}
#else
#if dtype == "f32"
@group(0) @binding(${index}) var<storage, read> ${name}: array<${"f32" if vec == 1 else "vec4<f32>"}>;
#else
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec2<u32>>;
#endif
${loads(name, dtype, vec, false)}
#endif
#endmacro

<# Sixteen bytes an access: with 16-bit elements twice what load4 has. f32 elements need two. #>
#macro input8(index, name, dtype)
#if dtype == "f32"
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec4<f32>>;
#else
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec4<u32>>;
#endif
${loads8(name, dtype)}
#endmacro

#macro loads8(name, dtype)
#if dtype == "f32"
fn load8_${name}(i: u32) -> Eight { return Eight(${name}[i >> 2u], ${name}[(i >> 2u) + 1u]); }
#else
fn load8_${name}(i: u32) -> Eight {
    let w = ${name}[i >> 3u];
    return Eight(
        vec4<f32>(${pair("w.x", dtype)}, ${pair("w.y", dtype)}),
        vec4<f32>(${pair("w.z", dtype)}, ${pair("w.w", dtype)}),
    );
}
#endif
#endmacro

#macro output(index, name, dtype, vec)
#if dtype == "f32"
@group(0) @binding(${index}) var<storage, read_write> ${name}: array<${"f32" if vec == 1 else "vec4<f32>"}>;
#elif vec == 8
@group(0) @binding(${index}) var<storage, read_write> ${name}: array<vec4<u32>>;
#elif vec == 4
@group(0) @binding(${index}) var<storage, read_write> ${name}: array<vec2<u32>>;
#elif vec == 2
@group(0) @binding(${index}) var<storage, read_write> ${name}: array<u32>;
#else
@group(0) @binding(${index}) var<storage, read_write> ${name}: array<atomic<u32>>;
#endif
${stores(name, dtype, vec)}
#endmacro

#macro inout(index, name, dtype, vec)
${output(index, name, dtype, vec)}
#if vec == 8
${loads8(name, dtype)}
#else
${loads(name, dtype, vec, dtype != "f32" and vec != 4)}
#endif
#endmacro

#macro loads(name, dtype, vec, atomic)
#if dtype == "f32" and vec == 1
fn load_${name}(i: u32) -> f32 { return ${name}[i]; }
fn load2_${name}(i: u32) -> vec2<f32> { return vec2<f32>(${name}[i], ${name}[i + 1u]); }
fn load4_${name}(i: u32) -> vec4<f32> { return vec4<f32>(load2_${name}(i), load2_${name}(i + 2u)); }
#elif dtype == "f32"
fn load_${name}(i: u32) -> f32 { return ${name}[i >> 2u][i & 3u]; }
fn load2_${name}(i: u32) -> vec2<f32> { return vec2<f32>(load_${name}(i), load_${name}(i + 1u)); }
fn load4_${name}(i: u32) -> vec4<f32> { return ${name}[i >> 2u]; }
#else
#if atomic
fn word_${name}(i: u32) -> u32 { return atomicLoad(&${name}[i]); }
fn load4_${name}(i: u32) -> vec4<f32> {
    return vec4<f32>(${pair("word_" ~ name ~ "(i >> 1u)", dtype)}, ${pair("word_" ~ name ~ "((i >> 1u) + 1u)", dtype)});
}
#else
fn word_${name}(i: u32) -> u32 { return ${name}[i >> 1u][i & 1u]; }
fn load4_${name}(i: u32) -> vec4<f32> {
    let w = ${name}[i >> 2u];
    return vec4<f32>(${pair("w.x", dtype)}, ${pair("w.y", dtype)});
}
#endif
fn load_${name}(i: u32) -> f32 { return (${pair("word_" ~ name ~ "(i >> 1u)", dtype)})[i & 1u]; }
fn load2_${name}(i: u32) -> vec2<f32> { return ${pair("word_" ~ name ~ "(i >> 1u)", dtype)}; }
#endif
#if vec == 4
fn load_some_${name}(i: u32, n: u32) -> vec4<f32> {
    if n == 0u { return vec4<f32>(); }
    return load4_${name}(i);
}
#else
fn load_some_${name}(i: u32, n: u32) -> vec4<f32> {
    var v = vec4<f32>();
    if n > 0u { v.x = load_${name}(i); }
    if n > 1u { v.y = load_${name}(i + 1u); }
    if n > 2u { v.z = load_${name}(i + 2u); }
    if n > 3u { v.w = load_${name}(i + 3u); }
    return v;
}
#endif
#endmacro

#macro stores(name, dtype, vec)
#if vec == 8
fn store8_${name}(i: u32, low: vec4<f32>, high: vec4<f32>) {
#if dtype == "f32"
    ${name}[i >> 2u] = low;
    ${name}[(i >> 2u) + 1u] = high;
#else
    ${name}[i >> 3u] = vec4<u32>(
        ${pack("low.xy", dtype)}, ${pack("low.zw", dtype)}, ${pack("high.xy", dtype)}, ${pack("high.zw", dtype)},
    );
#endif
}
#elif vec == 4
fn store4_${name}(i: u32, v: vec4<f32>) {
#if dtype == "f32"
    ${name}[i >> 2u] = v;
#else
    ${name}[i >> 2u] = vec2<u32>(${pack("v.xy", dtype)}, ${pack("v.zw", dtype)});
#endif
}
fn store_some_${name}(i: u32, n: u32, v: vec4<f32>) {
    if n > 0u { store4_${name}(i, v); }
}
#elif vec == 2
fn store2_${name}(i: u32, v: vec2<f32>) {
#if dtype == "f32"
    ${name}[i >> 2u][i & 3u] = v.x;
    ${name}[i >> 2u][(i & 3u) + 1u] = v.y;
#else
    ${name}[i >> 1u] = ${pack("v", dtype)};
#endif
}
#else
fn store_${name}(i: u32, v: f32) {
#if dtype == "f32"
    ${name}[i] = v;
#else
    let shift = (i & 1u) * 16u;
    let bits = ${pack("vec2<f32>(v, 0.0)", dtype)} & 0xffffu;
    atomicAnd(&${name}[i >> 1u], ~(0xffffu << shift));
    atomicOr(&${name}[i >> 1u], bits << shift);
#endif
}
fn store_some_${name}(i: u32, n: u32, v: vec4<f32>) {
    if n > 0u { store_${name}(i, v.x); }
    if n > 1u { store_${name}(i + 1u, v.y); }
    if n > 2u { store_${name}(i + 2u, v.z); }
    if n > 3u { store_${name}(i + 3u, v.w); }
}
#endif
#endmacro

<# Two elements out of a word, and into one. #>
#macro pair(word, dtype)
#if dtype == "f16"
unpack2x16float(${word})
#else
bf16_pair(${word})
#endif
#endmacro

#macro pack(pair, dtype)
#if dtype == "f16"
f16_word(${pair})
#else
bf16_word(${pair})
#endif
#endmacro

<# Functions that the tensors of a kernel share: once a kernel. #>
#macro prelude()
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn bf16_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Round to nearest, ties to even; NaN stays NaN.
fn bf16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
fn bf16_word(v: vec2<f32>) -> u32 { return bf16_bits(v.x) | (bf16_bits(v.y) << 16u); }

fn f16_word(v: vec2<f32>) -> u32 { return pack2x16float(v); }
#endmacro
