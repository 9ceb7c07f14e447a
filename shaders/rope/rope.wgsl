// y = x with the leading channels of every head rotated by their token's position (RoPE, arXiv 2104.09864); the
// channels after them pass through.
//
// x, y: [tokens, heads, head_dim] with any distance between tokens and heads. table: [positions, 2, half], the cosines
// and the sines of each position's `half` pairs. A token's position is `start` plus its number, or with POSITIONS tensor
// positions[start plus its number], where one beyond the table takes the table's last.
// One invocation handles one slot of 2 * VEC channels (lib/rope.wgsl). PLACE in_place: y is x, and only slots that rotate
// are launched.
#import "lib/tensor.wgsl" as t
#import "lib/rope.wgsl" as rope

struct Params {
    total: u32,
    slots: u32,
    rotating: u32,
    heads: u32,
    half: u32,
    start: u32,
    last_position: u32,
    x_offset: u32,
    x_token: u32,
    x_head: u32,
    y_offset: u32,
    y_token: u32,
    y_head: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
#if PLACE == "in_place"
${ t.inout(1, "x", X, VEC) }
#else
${ t.input(1, "x", X, VEC) }
${ t.output(4, "y", Y, VEC) }
#endif
${ t.input(2, "table", "f32", VEC) }
#if POSITIONS == "tensor"
${ t.words(3, "positions", "u32") }
#endif
${ rope.functions(LAYOUT, VEC) }
#set V = "4" if VEC == 4 else ""
#set OUT = "x" if PLACE == "in_place" else "y"

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (workgroup.y * grid.x + workgroup.x) * ${WG}u + lane;
    if id >= p.total { return; }
    let slot = id % p.slots;
    let head = (id / p.slots) % p.heads;
    let token = id / (p.slots * p.heads);
    let from_head = p.x_offset + token * p.x_token + head * p.x_head;
    let to_head = p.y_offset + token * p.y_token + head * p.y_head;
    if slot < p.rotating {
        #if POSITIONS == "tensor"
        let position = min(positions[p.start + token], p.last_position);
        #else
        let position = p.start + token;
        #endif
        let angles = position * 2u * p.half + slot * ${VEC}u;
        let first = rotated_first(slot);
        let second = rotated_second(slot, p.half);
        let pair = rotate(
            load${V}_x(from_head + first),
            load${V}_x(from_head + second),
            load${V}_table(angles),
            load${V}_table(angles + p.half),
        );
        store${V}_${OUT}(to_head + first, pair.a);
        store${V}_${OUT}(to_head + second, pair.b);
    #if PLACE == "in_place"
    }
    #else
    } else {
        let channel = slot * ${2 * VEC}u;
        store${V}_y(to_head + channel, load${V}_x(from_head + channel));
        store${V}_y(to_head + channel + ${VEC}u, load${V}_x(from_head + channel + ${VEC}u));
    }
    #endif
}
