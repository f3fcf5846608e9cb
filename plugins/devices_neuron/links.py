"""Which chip is joined to which: what the sources agree on, what the documents say, and never a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from devices_neuron.chips import Generation, machine

Said = Mapping[int, tuple[int, ...] | None]


def agreed_links(
    files: Said,
    listed: Said,
    present: Sequence[int],
    generation: Generation,
    faults: list[str],
    gaps: list[str],
) -> dict[int, tuple[int, ...]] | None:
    """Return the neighbours of each chip, or None where they are not known.

    Args:
        files: what the driver's files say.
        listed: what `neuron-ls` says.
        present: the chips.
        generation: of the chips.
        faults: gets what is wrong.
        gaps: gets what could not be found out.
    """
    told = [(who, said) for who, said in (("the driver", files), ("neuron-ls", listed)) if _is_whole(said, present)]
    for index in present:
        both = [(who, said[index]) for who, said in (("the driver", files), ("neuron-ls", listed)) if index in said]
        sets = {frozenset(some) for _, some in both if some is not None}
        if len(sets) > 1:
            shown = " and ".join(f"{who} says {_shown(some)}" for who, some in both)
            faults.append(f"the neighbours of neuron{index} are not agreed on: {shown}")
            return None
    expected = _documented(generation, len(present))
    if not told:
        if len(present) == 1:
            return {present[0]: ()}
        if expected is not None and present == list(range(len(present))):
            gaps.append("nothing here says which chips are joined; it is taken from the documents")
            return expected
        gaps.append("which chips are joined is not known")
        return None
    who, said = told[0]
    found = {index: said[index] or () for index in present}
    if not _is_sound(who, found, faults):
        return None
    absent = sorted({peer for peers in found.values() for peer in peers} - set(present))
    if absent:
        gaps.append(f"chips are joined to {', '.join(f'neuron{peer}' for peer in absent)}, which is not here")
        return {index: tuple(peer for peer in peers if peer in found) for index, peers in found.items()}
    shape = _shape(generation, len(present))
    if shape == "switch":
        if any(found.values()):
            # The driver has one table for 16 chips, that of a Trainium2, and says so of a Trainium3 too.
            gaps.append(f"{who} says which chips are joined, and the documents that all are by a switch: that is taken")
        return dict.fromkeys(present, ())
    if expected is not None and any(set(found[index]) != set(expected[index]) for index in present if index in found):
        faults.append(f"{who} says which chips are joined, and it is not the {shape} of the documents")
        return None
    return found


def _is_whole(said: Said, present: Sequence[int]) -> bool:
    return bool(present) and all(said.get(index) is not None for index in present)


def _is_sound(who: str, found: Mapping[int, tuple[int, ...]], faults: list[str]) -> bool:
    for index, peers in found.items():
        if index in peers:
            faults.append(f"{who} says that neuron{index} is joined to itself")
            return False
        for peer in peers:
            if peer in found and index not in found[peer]:
                faults.append(f"{who} says that neuron{index} is joined to neuron{peer}, and not the other way round")
                return False
    return True


def _shape(generation: Generation, chips: int) -> str:
    target = machine(generation, chips)
    return str(target.figure("topology").value or "") if target is not None else ""


def _documented(generation: Generation, chips: int) -> dict[int, tuple[int, ...]] | None:
    """Return the neighbours that the catalogue's shape gives, chips in row-major order; None without a shape."""
    kind, _, sizes = _shape(generation, chips).partition(" ")
    lengths = [int(size) for size in sizes.split("x")] if sizes else []
    if kind not in ("torus", "ring", "line"):
        return None
    found: dict[int, tuple[int, ...]] = {}
    for place in range(chips):
        peers: list[int] = []
        stride = chips
        for length in lengths:
            stride //= length
            at = place // stride % length
            for step in (-1, 1):
                if kind == "line" and not 0 <= at + step < length:
                    continue
                peers.append(place + ((at + step) % length - at) * stride)
        found[place] = tuple(dict.fromkeys(peer for peer in peers if peer != place))
    return found


def _shown(peers: tuple[int, ...] | None) -> str:
    return ", ".join(map(str, peers)) if peers else "none" if peers is not None else "nothing"
