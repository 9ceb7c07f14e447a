<#
What the two kernels of attention's gradients share. Both cut scores into tiles of queries by keys and compute s =
q k' and dp = dout v' of a tile side by side; one holds its queries and walks over keys, the other holds its keys and
walks over queries. An invocation has QP queries by KP keys of a tile; QT and KT invocations share its queries and its
keys. Of the held side an invocation has 4 or 8, of the walked side 4.

Names that the macros use: stage, tile (workgroup memory), lane, tx, ty.
#>
<#
The dot products `into_r_g` (row r, four keys from 4 g on) of the tile's rows of `rows` and `keys`, over `width`
channels, which pass through workgroup memory DC groups of four at a time. Staged rows are permuted, (row % QP) * QT +
row / QP, and their columns XORed, so that neighbouring invocations read neighbouring 16 bytes and writes spread over
the banks. Queries that are not there are those of the last row.
#>
#macro dots(into, rows, keys, width, QP, QT, KP, KT, q_lane, k_lane, DC, WG)
#for r in range(QP)
#for g in range(KP // 4)
var ${into}_${r}_${g} = vec4<f32>();
#endfor
#endfor
for (var c0 = 0u; c0 < ${(width + 3) // 4}u; c0 += ${DC}u) {
    workgroupBarrier();
    ${stage_columns(rows, "q0", "last_query", width, QP, QT, 0, DC, WG)}
    ${stage_columns(keys, "k0", "last_key", width, KP, KT, DC * QP * QT, DC, WG)}
    workgroupBarrier();
    #for c in range(DC)
    {
        #for j in range(KP)
        let key_${j} = stage[${DC * QP * QT + c * KP * KT}u + ((${j * KT}u + ${k_lane}) ^ ${c * 2}u)];
        #endfor
        #for r in range(QP)
        let query_${r} = stage[${c * QP * QT}u + ((${r * QT}u + ${q_lane}) ^ ${c * 2}u)];
        #for g in range(KP // 4)
        #for x in ["x", "y", "z", "w"]
        ${into}_${r}_${g} = fma(vec4<f32>(query_${r}.${x}), vec4<f32>(${keys_of(g, x)}), ${into}_${r}_${g});
        #endfor
        #endfor
        #endfor
    }
    #endfor
}
#endmacro

#macro keys_of(g, x)
key_${4 * g}.${x}, key_${4 * g + 1}.${x}, key_${4 * g + 2}.${x}, key_${4 * g + 3}.${x}
#endmacro

#macro stage_columns(tensor, first, last, width, per, teams, offset, DC, WG)
#for i in range((per * teams * DC + WG - 1) // WG)
{
    let e = lane + ${i * WG}u;
    #if per * teams * DC % WG != 0
    if e < ${per * teams * DC}u {
    #endif
    let at = e / ${DC}u;
    let c = e % ${DC}u;
    let col = (c0 + c) * 4u;
    let source = ${tensor}_base + min(${first} + at, ${last}) * ${tensor}_stride + col;
    let pos = ((at % ${per}u) * ${teams}u + at / ${per}u) ^ (c * 2u);
    stage[${offset}u + c * ${per * teams}u + pos] = load_some_${tensor}(source, ${width}u - min(col, ${width}u));
    #if per * teams * DC % WG != 0
    }
    #endif
}
#endfor
#endmacro

<#
into_r_j += tile * rows: the tile's R held rows of this invocation by `count` walked ones from `first` on, times the
rows of `tensor`, BV of which are staged at a time. The invocation has the columns tx, tx + TX, .. (each four wide).
#>
#macro accumulate(into, tensor, first, last, count, width, R, TX, BV, WG)
#set W4 = (width + 3) // 4
for (var v0 = 0u; v0 < ${count}; v0 += ${BV}u) {
    workgroupBarrier();
    #for i in range((BV * W4 + WG - 1) // WG)
    {
        let e = lane + ${i * WG}u;
        #if BV * W4 % WG != 0
        if e < ${BV * W4}u {
        #endif
        let col = (e % ${W4}u) * 4u;
        let source = ${tensor}_base + min(${first} + v0 + e / ${W4}u, ${last}) * ${tensor}_stride + col;
        stage[e] = load_some_${tensor}(source, ${width}u - col);
        #if BV * W4 % WG != 0
        }
        #endif
    }
    #endfor
    workgroupBarrier();
    for (var k4 = 0u; k4 < ${BV // 4}u; k4 += 1u) {
        let walked = ((v0 >> 2u) + k4) ^ (ty % ${TX}u);
        #for r in range(R)
        let w_${r} = tile[(ty * ${R}u + ${r}u) * ${TX}u + walked];
        #endfor
        #for j in range((W4 + TX - 1) // TX)
        {
            #if (j + 1) * TX > W4
            let col = min(tx + ${j * TX}u, ${W4 - 1}u);
            #else
            let col = tx + ${j * TX}u;
            #endif
            #for u in range(4)
            let value_${u} = stage[(k4 * 4u + ${u}u) * ${W4}u + col];
            #endfor
            #for r in range(R)
            #for u in range(4)
            ${into}_${r}_${j} = fma(vec4<f32>(w_${r}[${u}]), value_${u}, ${into}_${r}_${j});
            #endfor
            #endfor
        }
        #endfor
    }
}
#endmacro

<# The accumulators of `accumulate`, zero. #>
#macro accumulators(into, width, R, TX)
#for r in range(R)
#for j in range(((width + 3) // 4 + TX - 1) // TX)
var ${into}_${r}_${j} = vec4<f32>();
#endfor
#endfor
#endmacro

<# Held row r of this invocation in the tile. #>
#macro put(r, R, TX, value)
tile[(ty * ${R}u + ${r}u) * ${TX}u + (tx ^ (ty % ${TX}u))] = ${value};
#endmacro

<# Stores held row r, which is row `row` of the tensor whose batch and head begin at `base`. #>
#macro store_row(tensor, into, r, base, row, width, TX, factor="1.0")
#set W4 = (width + 3) // 4
#for j in range((W4 + TX - 1) // TX)
{
    let col = (tx + ${j * TX}u) * 4u;
    #if (j + 1) * TX > W4
    if col < ${width}u {
    #endif
    store_some_${tensor}(${base} + (${row}) * p.${tensor}_row + col, ${width}u - col, ${into}_${r}_${j} * ${factor});
    #if (j + 1) * TX > W4
    }
    #endif
}
#endfor
#endmacro

<#
The weights `into` of four keys from `key` on out of their dot products: exp(score - lse). Where scores are plain products
the difference is taken before it becomes a base-2 logarithm: it is small where the weight counts, so that only the
product rounds, as in naive arithmetic.
#>
#macro weights(into, dots, row, key, seen, lse, PLAIN)
#if PLAIN
var ${into} = fma(${dots}, vec4<f32>(p.gradient_scale), vec4<f32>(-${lse})) * LOG2E;
#else
var ${into} = open_scores(${dots}, batch, head, ${row}, ${key}, ${seen}.at) - ${lse} * LOG2E;
#endif
if !open { ${into} = hide(${into}, ${key}, ${seen}); }
${into} = exp2(${into});
#endmacro
