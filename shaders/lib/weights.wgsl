<#
Eight adjacent elements of a row at a time, of every element type that sparse products read.

  ${ weights.operand(2, "w", W, CHUNK) }            f32, f16, bf16, or i8 with CHUNK 8 alone; read
  ${ weights.chunks("w", W, CHUNK, FULL, "p.k") }   chunk_w(row, col) -> Eight

`row` is where the row begins, `col` a multiple of 8; elements at and beyond the length are zero. FULL 1: every column
asked for is within the length, and a multiple of 8 from its end. CHUNK 8: rows are multiples of eight elements; 4: of four;
1: any. An i8 element is worth itself: scales are the kernel's.
#>
#import "lib/tensor.wgsl" as t
#macro operand(index, name, dtype, chunk)
#if dtype == "i8"
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec2<u32>>;
<# A byte u under the exponent of 2^23 is 2^23 + u: an exact difference in place of a conversion, of which a processor makes few. #>
fn codes_${name}(w: u32) -> vec4<f32> {
    let bytes = (vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    return bitcast<vec4<f32>>(bytes | vec4<u32>(0x4b000000u)) - vec4<f32>(8388736.0);
}
fn load8_${name}(i: u32) -> Eight {
    let w = ${name}[i >> 3u] ^ vec2<u32>(0x80808080u);
    return Eight(codes_${name}(w.x), codes_${name}(w.y));
}
#elif chunk == 8
${ t.input8(index, name, dtype) }
#else
${ t.input(index, name, dtype, chunk) }
#endif
#endmacro

#macro chunks(name, dtype, chunk, full, length)
fn chunk_${name}(row: u32, col: u32) -> Eight {
    #if not full
    if col >= ${length} { return Eight(vec4<f32>(), vec4<f32>()); }
    #endif
    #if chunk == 8
    return load8_${name}(row + col);
    #else
    let left = ${length} - col;
    let low = load_some_${name}(row + col, min(left, 4u));
    return Eight(low, load_some_${name}(row + col + 4u, min(max(left, 4u) - 4u, 4u)));
    #endif
}
#endmacro
