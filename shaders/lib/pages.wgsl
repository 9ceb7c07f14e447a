<#
Where a token of a sequence lies in a cache of pages [pages, heads, page_size].

PAGE none: the sequence is the page, of p.page_size tokens. whole: its page is the first of its blocks. A number:
tokens of a page; token i is in block i / PAGE. table: for each sequence its length, then its blocks' pages
[batches, blocks]. Whatever the table says, what comes out is a row of the cache.
#>
#macro functions(page)
// The row in [pages, heads, page_size].
fn stored_row(batch: u32, head: u32, token: u32) -> u32 {
    #if page == "none"
    return (batch * p.heads + head) * p.page_size + min(token, p.page_size - 1u);
    #elif page == "whole"
    let number = min(table[p.batches + batch * p.blocks], p.pages - 1u);
    return (number * p.heads + head) * p.page_size + min(token, p.page_size - 1u);
    #else
    let block = min(token / ${page}u, p.blocks - 1u);
    let number = min(table[p.batches + batch * p.blocks + block], p.pages - 1u);
    return (number * p.heads + head) * ${page}u + token % ${page}u;
    #endif
}
#endmacro
