"""Least-recently-used caches of prefix blocks, one per instance, as hash tables on arrays.

It exists because a trace with block hashes says which prompts share a prefix: what is cached need not be processed. It
does not share memory with the KV cache: the blocks are kept beside it (host memory, or a slice set aside).
"""

from simulator.engine.layout import (
    CACHE_NEWEST,
    CACHE_NODES,
    CACHE_OLDEST,
    NONE,
    Counts,
    World,
)
from solver.compiled import compiled


@compiled
def _home(w: World, block: int) -> int:
    """Return where a block's search begins (multiplicative hashing; blocks are numbered densely from 0)."""
    return int(((block * 2654435761) >> 8) & (w.cache_table.shape[1] - 1))


@compiled
def _place(w: World, i: int, block: int) -> int:
    """Return the place of a block in the table, or of the gap where it would go."""
    mask = w.cache_table.shape[1] - 1
    place = _home(w, block)
    while w.cache_table[i, place] != NONE and w.cache_block[i, w.cache_table[i, place]] != block:
        place = (place + 1) & mask
    return place


@compiled
def _unlink(w: World, i: int, node: int) -> None:
    newer, older = w.cache_newer[i, node], w.cache_older[i, node]
    if newer == NONE:
        w.inst_counts[CACHE_NEWEST, i] = older
    else:
        w.cache_older[i, newer] = older
    if older == NONE:
        w.inst_counts[CACHE_OLDEST, i] = newer
    else:
        w.cache_newer[i, older] = newer


@compiled
def _link_newest(w: World, i: int, node: int) -> None:
    newest = w.inst_counts[CACHE_NEWEST, i]
    w.cache_newer[i, node] = NONE
    w.cache_older[i, node] = newest
    if newest == NONE:
        w.inst_counts[CACHE_OLDEST, i] = node
    else:
        w.cache_newer[i, newest] = node
    w.inst_counts[CACHE_NEWEST, i] = node


@compiled
def _forget(w: World, i: int, block: int) -> None:
    """Take a block out of the table, closing the gap so that no search breaks off."""
    mask = w.cache_table.shape[1] - 1
    gap = _place(w, i, block)
    place = (gap + 1) & mask
    while w.cache_table[i, place] != NONE:
        home = _home(w, w.cache_block[i, w.cache_table[i, place]])
        if ((place - home) & mask) >= ((place - gap) & mask):
            w.cache_table[i, gap] = w.cache_table[i, place]
            gap = place
        place = (place + 1) & mask
    w.cache_table[i, gap] = NONE


@compiled
def cached_blocks(w: World, i: int, blocks: Counts) -> int:
    """Count the leading blocks of a prompt that an instance holds; changes nothing."""
    for hits in range(len(blocks)):
        if w.cache_table[i, _place(w, i, blocks[hits])] == NONE:
            return hits
    return len(blocks)


@compiled
def keep(w: World, i: int, blocks: Counts) -> None:
    """Keep the blocks of a prompt, newest last block first to go: a prefix outlives what follows it."""
    for at in range(len(blocks) - 1, -1, -1):
        block = blocks[at]
        place = _place(w, i, block)
        node = w.cache_table[i, place]
        if node != NONE:
            _unlink(w, i, node)
        else:
            node = w.inst_counts[CACHE_NODES, i]
            if node < w.cache_block.shape[1]:
                w.inst_counts[CACHE_NODES, i] = node + 1
            else:
                node = w.inst_counts[CACHE_OLDEST, i]
                _unlink(w, i, node)
                _forget(w, i, w.cache_block[i, node])
                place = _place(w, i, block)
            w.cache_block[i, node] = block
            w.cache_table[i, place] = node
        _link_newest(w, i, node)


@compiled
def forget_all(w: World, i: int) -> None:
    """Empty the cache of an instance that went down."""
    w.cache_table[i, :] = NONE
    w.inst_counts[CACHE_NODES, i] = 0
    w.inst_counts[CACHE_NEWEST, i] = NONE
    w.inst_counts[CACHE_OLDEST, i] = NONE
