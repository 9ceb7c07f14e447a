<#
What the two kernels of attention's gradients on matrix units share: tiles of walked rows in workgroup memory, in the
two forms that products take them in, and the products themselves. Matrices are those of lib/fragments.wgsl, and
channels and walked rows are permuted among their columns as in flash.wgsl, so that an invocation has eight
neighbouring channels of a held row and four neighbouring walked rows.

C is a row's groups of eight channels, padded to four of them; RB and J are sixteens of held and walked rows. Names that the
macros use: lane, quad, line, even and odd (where this invocation's parts of a tile of rows lie), pair_at (of pairs).
#>
<# Registers for this invocation's part of `rows` rows of C groups of eight channels. #>
#macro registers(name, rows, C, WG)
#for i in range((rows // 2 * C + WG - 1) // WG)
var ${name}_${i}_0: vec4<u32>;
var ${name}_${i}_1: vec4<u32>;
#endfor
#endmacro

<# Reads pairs of rows from row `first` on; those after `last` are `last`. #>
#macro fetch(name, first, last, rows, D, C, WG)
#for i in range((rows // 2 * C + WG - 1) // WG)
{
    let e = lane + ${i * WG}u;
    let c = e % ${C}u;
    let r = ${first} + e / ${C}u * 2u;
    #if C * 8 != D
    ${name}_${i}_0 = vec4<u32>();
    ${name}_${i}_1 = vec4<u32>();
    #endif
    #if C * 8 != D or rows // 2 * C % WG != 0
    if c < ${D // 8}u && e < ${rows // 2 * C}u {
    #endif
    ${name}_${i}_0 = ${name}[${name}_base + min(r, ${last}) * ${name}_stride + c];
    ${name}_${i}_1 = ${name}[${name}_base + min(r + 1u, ${last}) * ${name}_stride + c];
    #if C * 8 != D or rows // 2 * C % WG != 0
    }
    #endif
}
#endfor
#endmacro

<# Writes them by rows of C groups of eight channels. #>
#macro put_rows(name, rows, C, WG)
#for i in range((rows // 2 * C + WG - 1) // WG)
{
    let e = lane + ${i * WG}u;
    let c = e % ${C}u;
    let at = e / ${C}u * ${2 * C}u;
    #if rows // 2 * C % WG != 0
    if e < ${rows // 2 * C}u {
    #endif
    ${name}_rows[at + c] = ${name}_${i}_0;
    ${name}_rows[at + ${C}u + ${"(c ^ 4u)" if C % 8 == 0 else "c"}] = ${name}_${i}_1;
    #if rows // 2 * C % WG != 0
    }
    #endif
}
#endfor
#endmacro

<# Writes them by pairs of rows: a word has both rows' elements of a channel. #>
#macro put_pairs(name, rows, C, WG)
#for i in range((rows // 2 * C + WG - 1) // WG)
{
    let e = lane + ${i * WG}u;
    let r = e / ${C}u;
    let at = r * ${2 * C}u + (((e % ${C}u) * 2u) ^ (r & 6u));
    let low = (${name}_${i}_0 & vec4<u32>(0xffffu)) | (${name}_${i}_1 << vec4<u32>(16u));
    let high = (${name}_${i}_0 >> vec4<u32>(16u)) | (${name}_${i}_1 & vec4<u32>(0xffff0000u));
    #if rows // 2 * C % WG != 0
    if e < ${rows // 2 * C}u {
    #endif
    ${name}_pairs[at] = vec4<u32>(low.x, high.x, low.y, high.y);
    ${name}_pairs[at + 1u] = vec4<u32>(low.z, high.z, low.w, high.w);
    #if rows // 2 * C % WG != 0
    }
    #endif
}
#endfor
#endmacro

<# Matrices name_b_s of 16 held rows by 16 channels, straight from memory. #>
#macro held(name, RB, D, C)
#for b in range(RB)
#for s in range(C // 2)
var ${name}_${b}_${s}: MatrixA;
#endfor
#endfor
#for s in range(C // 4)
#for b in range(RB)
{
    #for r in range(2)
    #if (s + 1) * 32 > D
    var x${r} = vec4<u32>();
    if ${s * 4}u + quad < ${D // 8}u { x${r} = ${name}[${name}_at_${b * 2 + r} + ${s * 4}u]; }
    #else
    let x${r} = ${name}[${name}_at_${b * 2 + r} + ${s * 4}u];
    #endif
    #endfor
    ${name}_${b}_${s * 2} = matrix_a(vec4<u32>(x0.xy, x1.xy));
    ${name}_${b}_${s * 2 + 1} = matrix_a(vec4<u32>(x0.zw, x1.zw));
}
#endfor
#endfor
#endmacro

<# into_b_j += held rows times 16 J walked ones from word `offset` of a tile of rows on: products over channels. #>
#macro over_channels(into, held_name, tile, offset, RB, J, C)
#for s in range(C // 4)
{
    #for j in range(J)
    {
        #for h in range(2)
        let x${h} = ${tile}_rows[${"odd" if s % 2 else "even"} + ${offset} + ${(j * 16 + 2 * h) * C + s * 4}u];
        #endfor
        let walked_0 = matrix_b(vec4<u32>(x0.xy, x1.xy));
        let walked_1 = matrix_b(vec4<u32>(x0.zw, x1.zw));
        #for h in range(2)
        #for b in range(RB)
        ${into}_${b}_${j} = multiply_add(${held_name}_${b}_${s * 2 + h}, walked_${h}, ${into}_${b}_${j});
        #endfor
        #endfor
    }
    #endfor
}
#endfor
#endmacro

<# into_b_c += weights_b_j times 16 J walked rows from word `offset` of a tile of pairs on: products over rows. #>
#macro over_rows(into, weights, tile, offset, RB, J, C)
#for j in range(J)
#for g in range(C // 4)
{
    #for u in range(2)
    let x${u} = ${tile}_pairs[pair_at + ${offset} + ${(j * 8 + u) * 2 * C + g * 8}u];
    #endfor
    let values_0 = matrix_b(vec4<u32>(x0.x, x1.x, x0.y, x1.y));
    let values_1 = matrix_b(vec4<u32>(x0.z, x1.z, x0.w, x1.w));
    #for h in range(2)
    #for b in range(RB)
    ${into}_${b}_${g * 2 + h} = multiply_add(${weights}_${b}_${j}, values_${h}, ${into}_${b}_${g * 2 + h});
    #endfor
    #endfor
}
#endfor
#endfor
#endmacro

<# Four neighbouring elements of row `r` (of 2 RB) in block j of an accumulator. #>
#macro four(of, r, j)
vec4<f32>(
#for i in range(4)
element(&${of}_${r // 2}_${j}, ${r % 2 * 4 + i}u),
#endfor
)
#endmacro

<# Matrices of weights out of name_r_j, as f16. #>
#macro weights(into, name, RB, J)
#for b in range(RB)
#for j in range(J)
let ${into}_${b}_${j} = matrix_a(vec4<u32>(
    #for r in range(2)
    pack2x16float(${name}_${b * 2 + r}_${j}.xy), pack2x16float(${name}_${b * 2 + r}_${j}.zw),
    #endfor
));
#endfor
#endfor
#endmacro

<# Stores held row r at word `at` (of 16 bytes), times `factor`. #>
#macro store(tensor, of, r, at, D, C, factor)
#for g in range(C // 4)
{
    #if (g + 1) * 32 > D
    if ${g * 4}u + quad < ${D // 8}u {
    #endif
    #for e in range(2)
    #for t in range(4)
    let x${e * 4 + t} = element(&${of}_${r // 2}_${g * 2 + t // 2}, ${r % 2 * 4 + t % 2 * 2 + e}u) * ${factor};
    #endfor
    #endfor
    ${tensor}[${at} + ${g * 4}u + quad] = vec4<u32>(
        pack2x16float(vec2<f32>(x0, x1)), pack2x16float(vec2<f32>(x2, x3)),
        pack2x16float(vec2<f32>(x4, x5)), pack2x16float(vec2<f32>(x6, x7)));
    #if (g + 1) * 32 > D
    }
    #endif
}
#endfor
#endmacro

<# Accumulators name_b_c of RB * 16 rows. #>
#macro accumulators(name, RB, C)
#for b in range(RB)
#for c in range(C // 2)
var ${name}_${b}_${c}: Accumulator;
#endfor
#endfor
#endmacro

<# Where this invocation's parts of a tile of rows lie: in steps of even number, and in the others. #>
#macro parts(even, odd, C)
let ${even} = (line / 2u * 4u + line % 2u) * ${C}u + quad ${"+ line % 2u * 4u" if C % 8 == 0 else ""};
let ${odd} = (line / 2u * 4u + line % 2u) * ${C}u + quad ${"- line % 2u * 4u" if C % 8 == 0 else ""};
#endmacro
