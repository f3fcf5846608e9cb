"""Verbs of a group whose ranks have unequal links, over threads: what a domain's own verbs are handed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from domains.carriers import carriers

import devices.testing
from devices.algorithms.verbs import Verbs
from devices.domains.communicator import DomainsCommunicator
from devices.domains.inside import Inside
from devices.domains.members import Domains
from devices.domains.natively import Natively
from devices.domains.shares import Shares
from devices.fabric.communicator import REDUCTIONS

DOMAINS = Domains(((0, 3), (1, 2, 4)), ("here", "there"))
BANDWIDTHS = [4e9, 1e9, 2e9, 1e9, 7e9]


def of(rank: int, size: int) -> torch.Tensor:
    """Return numbers of a rank's own, whose sums are exact."""
    return (torch.arange(size) % 97 + 3 * rank).float()


def opened(swaps: bool) -> Verbs:
    """Open a group over both domains, whose own verbs are a group of threads', with its all_to_all or without."""
    by = carriers(DOMAINS, "links")
    if swaps:
        inside = Inside(by.own._communicator, by.place, by.size)
    else:
        inside = Inside(Natively(by.own), by.place, by.size, by.host, compares_all=True)
    shares = Shares(DOMAINS, BANDWIDTHS)
    communicator = DomainsCommunicator(by.group, DOMAINS, shares, inside, by.host, REDUCTIONS, "a test")
    return Verbs(communicator, by.group, by.world.capabilities)


def every_verb(_: devices.World, swaps: bool) -> None:
    verbs = opened(swaps)
    me, n = dist.get_rank(), dist.get_world_size()
    for size in (1, 13, 70_000):
        xs, blocks = [of(rank, size) for rank in range(n)], [of(rank, size * n) for rank in range(n)]
        summed = xs[me].clone()
        verbs.all_reduce(summed)
        assert summed.equal(torch.stack(xs).sum(0))
        gathered = torch.empty(size * n)
        verbs.all_gather(gathered, xs[me])
        assert gathered.equal(torch.cat(xs))
        verbs.reduce_scatter(part := torch.empty(size), blocks[me])
        assert part.equal(torch.stack(blocks).sum(0).chunk(n)[me])
        for root in range(n):
            verbs.broadcast(spread := xs[me].clone(), root)
            assert spread.equal(xs[root])
        counts = [[size * ((source + 2 * target) % 4) for target in range(n)] for source in range(n)]
        sent = [of(source, sum(counts[source])) for source in range(n)]
        came = [sent[source].split(counts[source])[me] for source in range(n)]
        verbs.all_to_all(swapped := torch.empty(sum(map(len, came))), sent[me], [row[me] for row in counts], counts[me])
        assert swapped.equal(torch.cat(came))


@pytest.mark.parametrize("swaps", [False, True], ids=["parts made equal", "its own all_to_all"])
def test_every_verb_computes_what_plain_torch_does_behind_unequal_links(
    swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last ones' tensors are in several pieces.
    monkeypatch.setattr("devices.domains.communicator.PIECE", 1 << 17)
    devices.testing.run(every_verb, swaps, ranks=len(BANDWIDTHS))
