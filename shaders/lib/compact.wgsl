<#
Places in a list: how many of something the invocations before an invocation have, and how many all have.

  ${ compact.scratch(WG) }                          once a kernel
  ${ compact.ranks(WG, "count", "rank", "all") }    declares `var rank` and `let all`; by every invocation of the workgroup

Through workgroup memory, by groups of 16. Dropped: prefix sums of subgroups, which gave wrong lists for two ragged rows on an H200
(not on lavapipe); presumably subgroups are in parts after loads of ragged ends. What was in workgroup memory before is free to be
overwritten after it.
#>
#macro scratch(wg)
var<workgroup> rank_counts: array<u32, ${wg}>;
var<workgroup> rank_groups: array<u32, ${(wg + 15) // 16}>;
#endmacro

#macro ranks(wg, count, rank, all)
workgroupBarrier();
rank_counts[lane] = ${count};
workgroupBarrier();
if lane < ${(wg + 15) // 16}u {
    var of_group = 0u;
    for (var i = lane * 16u; i < min(lane * 16u + 16u, ${wg}u); i += 1u) { of_group += rank_counts[i]; }
    rank_groups[lane] = of_group;
}
workgroupBarrier();
var ${rank} = 0u;
var of_all = 0u;
for (var g = 0u; g < ${(wg + 15) // 16}u; g += 1u) {
    let of_group = rank_groups[g];
    if g < lane / 16u { ${rank} += of_group; }
    of_all += of_group;
}
for (var i = lane & ~15u; i < lane; i += 1u) { ${rank} += rank_counts[i]; }
let ${all} = of_all;
#endmacro
