// y[i] = W[i], or W[ids[i]] (ROWS "listed"): rows of a quantised matrix as numbers.
//
// W as src/quant/layout.rs has it; y: rows of adjacent elements, `stride` apart. An invocation expands a unit (16 bytes of
// codes: 16, 32 or 64 elements). A row whose id is not in the table becomes NaN; or stays as it is (nan = 0), where W is a
// part of a larger table, from row `first_id` of it, and not its first.
#import "lib/tensor.wgsl" as t
#import "lib/quant.wgsl" as quant

#set UNIT = 128 // LOW
#set PARTS = UNIT // GROUP if GROUP and GROUP < UNIT else 1

struct Params {
    units: u32,
    units_per_row: u32,
    cols: u32,
    rows: u32,
    ids_offset: u32,
    y_offset: u32,
    y_stride: u32,
    first_id: u32,
    nan: u32,
    ${ quant.fields("w") }
}
${ t.params(PARAMS) }
${ t.prelude() }
${ quant.prelude(CODE) }
${ quant.matrix(1, "w", CODE, SCALE, ZERO, OUTER) }
${ t.output(2, "y", Y, VEC) }
#if ROWS == "listed"
${ t.words(3, "ids", "u32") }
#endif

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    ${ quant.begin(CODE, "lane", WG) }
    let number = (workgroup.y * grid.x + workgroup.x) * ${WG}u + lane;
    if number >= p.units { return; }
    let i = number / p.units_per_row;
    let unit = number % p.units_per_row;
    let first = unit * ${UNIT}u;
    let at = p.y_offset + i * p.y_stride + first;
    #if ROWS == "listed"
    let id = ids[p.ids_offset + i] - p.first_id;
    if id >= p.rows && p.nan == 0u { return; }
    let row = min(id, p.rows - 1u);
    // A parameter, because WGSL has no NaN constants.
    let nan = select(0.0, bitcast<f32>(p.nan), id >= p.rows);
    #else
    let row = i;
    #endif
    let group_row = row / p.w_group_rows;
    let l = unit_w(row * p.w_row + unit);
    #if HIGH
    let high = row * p.w_high_row + unit * ${UNIT * HIGH // 32}u;
    let h = array<u32, 2>(high_w(high), ${"high_w(high + 1u)" if UNIT * HIGH == 64 else "0u"});
    #endif
    #for g in range(PARTS)
    {
        #if GROUP
        #if g
        // The last unit of a row may have no such group.
        let group = group_w(group_row, min(first / ${GROUP}u + ${g}u, p.w_groups - 1u));
        #else
        let group = group_w(group_row, first / ${GROUP}u);
        #endif
        #else
        let group = group_w(group_row, 0u);
        #endif
        #for q in range(g * UNIT // 4 // PARTS, (g + 1) * UNIT // 4 // PARTS)
        {
            ${ quant.four("level", CODE, LOW, HIGH, "l", "h", q) }
            #if ZERO == "none"
            var v = level * group.scale;
            #elif ZERO == "point"
            var v = (level - group.shift) * group.scale;
            #else
            var v = fma(level, vec4<f32>(group.scale), vec4<f32>(group.shift));
            #endif
            #if ROWS == "listed"
            v += nan;
            #endif
            let n = min(p.cols - min(first + ${4 * q}u, p.cols), 4u);
            store_some_y(at + ${4 * q}u, n, v);
        }
        #endfor
    }
    #endfor
}
