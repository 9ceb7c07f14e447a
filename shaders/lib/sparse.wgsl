<#
Block-sparse lists: which blocks of keys a block of queries meets, or the other way round (src/kernels/sparse/table.rs
writes them). One buffer of words:

  0  lines of a list head (blocks of queries, in the table of rows)
  1  list heads; query head h has the lists of head h / SHARE
  2  keys less queries of the layout, i32: both end at the same place
  3  where the entries begin
  4  offsets, one more than lines of all heads: the line's entries, counted from the first entry
  .. order: all lines, heads in turn, of each the longest list first
  entries of two words: the block, its top bit set if some of its pairs are hidden; the page, in blocks, where it
  lies in memory (the block itself, unless a cache dropped blocks)

The grid is [tiles of a line * SHARE * batches, lines of the call, list heads]: the tiles and heads of a line, which
read the same blocks, run side by side, as do the lines of a head, and its long lines start first. A call over a part
of the rows (a chunk of a prompt) has query i at row first_row() + i; its lines run from the last.

  ${ sparse.lists(8) }                     the binding `lists`
  ${ sparse.functions(BLOCK, SHARE, BQ) }  BQ rows of a line to a workgroup; uses p.q_len, p.kv_len
  ${ sparse.entries() }                    its parts for kernels with a grid of their own
#>
#macro lists(binding)
@group(0) @binding(${binding}) var<storage, read> lists: array<u32>;
#endmacro

<# What every walk over lists needs. #>
#macro entries()
const PARTIAL: u32 = 0x80000000u;

// The layout's row of the call's first query.
fn first_row() -> u32 { return p.kv_len - p.q_len - lists[2]; }

// Words of the entries of a line (list head * lines + block).
fn entries_of(line: u32) -> vec2<u32> {
    return vec2<u32>(lists[3]) + 2u * vec2<u32>(lists[4u + line], lists[5u + line]);
}
#endmacro

#macro functions(block, share, bq)
#set TILES = block // bq
${ entries() }

struct Block {
    // The first key, and where it lies in memory.
    key: u32,
    place: u32,
}

// That of an entry, by its word.
fn block_at(entry: u32) -> Block {
    return Block((lists[entry] & ~PARTIAL) * ${block}u, lists[entry + 1u] * ${block}u);
}

struct Tile {
    batch: u32,
    // Query head.
    head: u32,
    // The tile's first row in the layout; query row - first_row() of the call, which may be negative.
    row: u32,
    // Words of `lists`: entries begin, begin + 2, .. below end.
    begin: u32,
    end: u32,
}

fn tile_of(workgroup: vec3<u32>, grid: vec3<u32>) -> Tile {
    let lines = lists[0];
    let heads = lists[1];
    let copy = workgroup.x / ${TILES}u;
    let place = workgroup.z * grid.y + workgroup.y;
    var line = lists[5u + heads * lines + place % (heads * lines)];
    if grid.y < lines {
        let last = (first_row() + p.q_len - 1u) / ${block}u;
        line = (place % heads) * lines + last - place / heads;
    }
    let entries = entries_of(line);
    return Tile(
        copy / ${share}u,
        (line / lines) * ${share}u + copy % ${share}u,
        (line % lines) * ${block}u + (workgroup.x % ${TILES}u) * ${bq}u,
        entries.x,
        entries.y,
    );
}
#endmacro
