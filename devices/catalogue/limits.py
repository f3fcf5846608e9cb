"""What a target allows a program to do: plain data, and the arithmetic of its world sizes and groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a target allows. Where something is None nothing is refused: `Target.provenance` says why it is None.

    Args:
        device_type: torch's type of its devices.
        process_group: what torch calls the vendor's process group.
        chip: the name of its chip in the catalogue.
        lnc: how many physical cores are one device, which is part of what a Neuron device is: the memory and the
            number of ranks depend on it. None where a chip is one device.
        nodes: how many machines it has.
        chips_per_node: how many chips each of them has.
        ranks_per_chip: how many devices each chip is; a rank has one device.
        memory_per_rank: bytes; a core's share of its chip's memory.
        dtypes: those that tensors may have.
        moved_dtypes: those of them that the vendor's group moves from rank to rank.
        float8_max: the largest magnitude that a float8_e4m3fn value may have where the chip is to read it.
        reductions: the reduce ops of the vendor's group, and the dtypes that each takes.
        verbs: those of the vendor's group.
        uneven_splits: whether all_gather, reduce_scatter and all_to_all take parts of unequal size.
        empty_tensors: whether the verbs take tensors without elements.
        subgroup_barrier: whether a group other than the world has a barrier.
        world_sizes: the legal numbers of ranks.
        world_size_multiple: every multiple of this is legal beside `world_sizes`.
        whole_nodes: whether a world of several nodes must have all of each node's ranks.
        symmetric_groups: whether a group over several nodes must have the same places on each of them.
        max_groups: how many groups there may be in one program.
        max_streams: how many streams collectives may run on at once.
    """

    device_type: str
    process_group: str | None
    chip: str
    lnc: int | None
    nodes: int
    chips_per_node: int
    ranks_per_chip: int | None
    memory_per_rank: int | None
    dtypes: frozenset[str] | None
    moved_dtypes: frozenset[str] | None
    float8_max: float | None
    reductions: Mapping[str, frozenset[str]] | None
    verbs: frozenset[str] | None
    uneven_splits: bool | None
    empty_tensors: bool | None
    subgroup_barrier: bool | None
    world_sizes: frozenset[int] | None
    world_size_multiple: int | None
    whole_nodes: bool | None
    symmetric_groups: bool | None
    max_groups: int | None
    max_streams: int | None

    @property
    def ranks_per_node(self) -> int | None:
        """How many ranks fill a machine."""
        return None if self.ranks_per_chip is None else self.chips_per_node * self.ranks_per_chip

    @property
    def ranks(self) -> int | None:
        """How many ranks fill the target."""
        return None if self.ranks_per_node is None else self.nodes * self.ranks_per_node

    def world_refusal(self, size: int) -> str | None:
        """Return why a world of `size` ranks is not legal, or None if it is."""
        if self.ranks is not None and size > self.ranks:
            return f"{size} ranks are more than the {self.ranks} that it has"
        if self.world_sizes is not None and not self._is_listed(size):
            listed = ", ".join(map(str, sorted(self.world_sizes)))
            multiple = self.world_size_multiple
            legal = listed + (f" or a multiple of {multiple}" if multiple else "")
            return f"{size} is no legal number of ranks: it must be {legal}"
        per_node = self.ranks_per_node
        if self.whole_nodes and per_node is not None and size > per_node and size % per_node:
            return f"{size} ranks are more than one node's {per_node} and not all the ranks of several nodes"
        return None

    def _is_listed(self, size: int) -> bool:
        multiple = self.world_size_multiple
        return size in (self.world_sizes or ()) or (multiple is not None and size > 0 and size % multiple == 0)

    def group_refusal(self, ranks: Iterable[int]) -> str | None:
        """Return why a group of these ranks of the world is not legal, or None if it is.

        Rank r is on node `r // ranks_per_node`, at the place `r % ranks_per_node`. A group is symmetric if each node
        that it reaches has the same number of its ranks, at the same places; on one node every group is.
        """
        per_node = self.ranks_per_node
        if not self.symmetric_groups or per_node is None:
            return None
        places: dict[int, list[int]] = defaultdict(list)
        for rank in sorted(ranks):
            places[rank // per_node].append(rank % per_node)
        (first, expected), *others = sorted(places.items()) or [(0, [])]
        for node, found in others:
            if found != expected:
                return (
                    f"it is not symmetric: it has the places {_shown(expected)} of node {first}"
                    f" and {_shown(found)} of node {node}"
                )
        return None


def _shown(places: list[int]) -> str:
    shown = ", ".join(map(str, places[:8]))
    return shown + (f", ... ({len(places)} in all)" if len(places) > 8 else "")
