// What follows a fused query-key-value product, in one dispatch: q rotated (RoPE, arXiv 2104.09864) into its output, k
// rotated into the key cache, v copied into the value cache.
//
// qkv: [tokens, (heads + 2 kv_heads) * head_dim]: the q heads, the k heads, the v heads. q: [tokens, heads, head_dim], or
// the q part of qkv itself (PLACE in_place). k_cache, v_cache: [kv_heads, max_len, head_dim], written at positions `start`
// and on. All with any distance between heads and between tokens or positions. table: [positions, 2, half], cosines
// and sines.
// With PAGE > 0 the caches are [1, pages * PAGE, head_dim], and pages [kv_heads, columns] tells where each block of PAGE
// positions of a key head goes.
// One invocation handles one slot of 2 * VEC channels of one head (lib/rope.wgsl).
#import "lib/tensor.wgsl" as t
#import "lib/rope.wgsl" as rope

struct Params {
    total: u32,
    slots: u32,
    rotating: u32,
    half: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    start: u32,
    x_offset: u32,
    x_token: u32,
    q_offset: u32,
    q_token: u32,
    q_head: u32,
    k_offset: u32,
    k_head: u32,
    k_position: u32,
    v_offset: u32,
    v_head: u32,
    v_position: u32,
    // Blocks of a key head's row of the page table.
    columns: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
#if PLACE == "in_place"
${ t.inout(1, "qkv", QKV, VEC) }
#else
${ t.input(1, "qkv", QKV, VEC) }
${ t.output(3, "q", Q, VEC) }
#endif
${ t.input(2, "table", "f32", VEC) }
${ t.output(4, "k_cache", K, VEC) }
${ t.output(5, "v_cache", VALUE, VEC) }
#if PAGE > 0
${ t.words(6, "pages", "u32") }
#endif
${ rope.functions(LAYOUT, VEC) }
#set V = "4" if VEC == 4 else ""
#set OUT = "qkv" if PLACE == "in_place" else "q"

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (workgroup.y * grid.x + workgroup.x) * ${WG}u + lane;
    if id >= p.total { return; }
    let all_heads = p.heads + 2u * p.kv_heads;
    let slot = id % p.slots;
    let head = (id / p.slots) % all_heads;
    let token = id / (p.slots * all_heads);
    let position = p.start + token;
    let rotates = slot < p.rotating && head < p.heads + p.kv_heads;

    var first = slot * ${2 * VEC}u;
    var second = first + ${VEC}u;
    if rotates {
        first = rotated_first(slot);
        second = rotated_second(slot, p.half);
    }
    let x = p.x_offset + token * p.x_token + head * p.head_dim;
    var pair = Pair(load${V}_qkv(x + first), load${V}_qkv(x + second));
    if rotates {
        let angles = position * 2u * p.half + slot * ${VEC}u;
        pair = rotate(pair.a, pair.b, load${V}_table(angles), load${V}_table(angles + p.half));
    }

    // Where key and value go.
    #if PAGE > 0
    let kv_head = 0u;
    let of_head = select(p.heads, p.heads + p.kv_heads, head >= p.heads + p.kv_heads);
    var place = 0u;
    if head >= p.heads {
        place = pages[(head - of_head) * p.columns + position / ${PAGE}u] * ${PAGE}u + position % ${PAGE}u;
    }
    #else
    let kv_head = select(head - p.heads, head - p.heads - p.kv_heads, head >= p.heads + p.kv_heads);
    let place = position;
    #endif
    if head < p.heads {
        let q = p.q_offset + token * p.q_token + head * p.q_head;
        store${V}_${OUT}(q + first, pair.a);
        store${V}_${OUT}(q + second, pair.b);
    } else if head < p.heads + p.kv_heads {
        let k = p.k_offset + place * p.k_position + kv_head * p.k_head;
        store${V}_k_cache(k + first, pair.a);
        store${V}_k_cache(k + second, pair.b);
    } else {
        let v = p.v_offset + place * p.v_position + kv_head * p.v_head;
        store${V}_v_cache(v + first, pair.a);
        store${V}_v_cache(v + second, pair.b);
    }
}
