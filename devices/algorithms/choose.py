"""Which schedule to use, by verb, bytes and number of ranks: the same choice on every rank."""

from __future__ import annotations

from devices.algorithms import direct, dissemination, pairwise, recursive, ring, trees
from devices.algorithms.schedule import Schedule

SMALL = 1 << 16
"""Below this many bytes a verb costs its number of steps; above, its number of bytes.

One-shot beats two passes below 64 to 128 KiB on one host, over shared memory and over sockets alike.
"""

MIDDLING = 1 << 20
"""Up to so many bytes an all_reduce halves; above, a ring needs less memory and uses all links at once."""

FEW = 16
"""Up to so many ranks, all may talk to all in one step."""


def choose(verb: str, size: int, bytes: int = 0, root: int = 0, pairs: tuple[tuple[int, int], ...] = ()) -> Schedule:
    """Return the schedule for a verb over `size` ranks.

    Args:
        verb: one of `schedule.VERBS`.
        size: the number of ranks.
        bytes: those of the tensor that is reduced or broadcast, or of all parts together. Not looked at for
            all_to_all and permute, whose sizes differ by rank.
        root: for verbs that have one.
        pairs: for permute.
    """
    is_small = bytes <= SMALL
    match verb:
        case "all_reduce":
            if is_small:
                return recursive.doubling(size)
            # Folding costs a message of the whole data, so it pays only where a ring is long.
            is_foldable = size.bit_count() == 1 or size > FEW
            return recursive.halving(size) if bytes <= MIDDLING and is_foldable else ring.all_reduce(size)
        case "all_gather":
            return pairwise.all_gather(size) if is_small and size <= FEW else ring.all_gather(size)
        case "reduce_scatter":
            return pairwise.reduce_scatter(size) if is_small and size <= FEW else ring.reduce_scatter(size)
        case "all_to_all":
            return pairwise.all_to_all(size)
        case "broadcast":
            return trees.broadcast(size, root)
        case "reduce":
            return trees.reduce(size, root)
        case "gather":
            return trees.gather(size, root) if is_small else direct.gather(size, root)
        case "scatter":
            return trees.scatter(size, root) if is_small else direct.scatter(size, root)
        case "permute":
            return direct.permute(size, pairs)
        case "barrier":
            return dissemination.barrier(size)
    raise AssertionError(f"no schedule for {verb!r}")
