// y[token] = table[ids[token]]: rows of a table by number.
//
// table: [vocab, width], y: [tokens, width], rows of adjacent elements an even distance apart. ids: [tokens]. A row of y
// whose id is not in the table becomes NaN: nothing is read beyond the table, and the mistake shows.
// The table may be a part of a larger one, from row `first` of it; rows of y whose ids are not in it then stay as they are
// (nan = 0), but for the first part.
// A row is cut into groups of four elements; one invocation handles one group.
#import "lib/tensor.wgsl" as t

struct Params {
    groups: u32,
    groups_per_row: u32,
    width: u32,
    vocab: u32,
    table_offset: u32,
    table_stride: u32,
    ids_offset: u32,
    y_offset: u32,
    y_stride: u32,
    first: u32,
    nan: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "table", TABLE, VEC) }
${ t.words(2, "ids", "u32") }
${ t.output(3, "y", Y, VEC) }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = (workgroup.y * grid.x + workgroup.x) * ${WG}u + lane;
    if group >= p.groups { return; }
    let token = group / p.groups_per_row;
    let column = (group % p.groups_per_row) * 4u;
    let n = min(p.width - column, 4u);
    // Less than `first` wraps to a large one.
    let id = ids[p.ids_offset + token] - p.first;
    if id >= p.vocab && p.nan == 0u { return; }
    // A parameter, because WGSL has no NaN constants.
    var v = vec4<f32>(bitcast<f32>(p.nan));
    if id < p.vocab { v = load_some_table(p.table_offset + id * p.table_stride + column, n); }
    store_some_y(p.y_offset + token * p.y_stride + column, n, v);
}
