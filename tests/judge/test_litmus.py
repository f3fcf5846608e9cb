"""Ten million messages between two processes over the fabric's memory and flags: the data is there when the flag is.

Each rank writes its data, then its flag, and reads the other's data when it sees the other's flag, in two slots by
turns, as the collectives do. On hardware that let stores be seen in another order, some data would be old.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import numpy as np
import pytest
from shared_memory import NEEDS_SHARED_MEMORY

pytestmark = NEEDS_SHARED_MEMORY

ROUNDS = int(os.environ.get("DEVICES_LITMUS_MESSAGES", "10000000")) // 2
"""Of two messages, one each way."""

FAR = (0, 9, 64, 1000, 8000)
"""Words of a message: in one line of the cache, in the next, in others, in another page."""

BLOCK = 4096
"""Bytes that numpy copies, in every 16th message, where no word of those lies."""
SECONDS = 1800.0


def _value(number: int, rank: int) -> int:
    return (number * 0x9E3779B97F4A7C15 + rank) & 0xFFFFFFFFFFFFFFFF


def _exchange(rank: int, owner: int, descriptor: int, end: Connection) -> None:
    """Send and receive as one rank of two, and tell how many messages had other data than they should."""
    from devices.fabric.host.layout import FLAG, Layout
    from devices.fabric.host.segment import Segment, find

    found = find(owner, descriptor)
    segment = Segment(Layout(2), found)
    os.close(found)
    layout, words = segment.layout, segment.words
    mine, other = (layout.control_word(each) + FLAG for each in (rank, 1 - rank))
    starts = [[layout.slot(each, parity) for parity in (0, 1)] for each in (rank, 1 - rank)]
    out, into = ([start // 8 for start in each] for each in starts)
    blocks = [[segment.bytes[start + 4 * BLOCK : start + 5 * BLOCK] for start in each] for each in starts]
    expected = np.empty(BLOCK, np.uint8)
    deadline, wrong = time.monotonic() + SECONDS, 0
    for number in range(1, ROUNDS + 1):
        parity = number & 1
        value, place = _value(number, rank), out[parity]
        for far in FAR:
            words[place + far] = value
        has_block = not number & 15
        if has_block:
            blocks[0][parity][...] = (number + rank) & 255
        words[mine + parity] = number
        spins = 0
        while words[other + parity] < number:
            spins += 1
            if spins > 100:
                os.sched_yield()
                if not spins & 0xFFFF and time.monotonic() > deadline:
                    raise TimeoutError(f"rank {rank} waits for message {number}")
        value, place = _value(number, 1 - rank), into[parity]
        for far in FAR:
            if words[place + far] != value:
                wrong += 1
                break
        if has_block:
            expected[...] = (number + 1 - rank) & 255
            wrong += not np.array_equal(blocks[1][parity], expected)
    end.send(wrong)


@pytest.mark.timeout(2 * SECONDS)
def test_messages_arrive_with_their_data(capsys: pytest.CaptureFixture[str]) -> None:
    from devices.fabric.host.layout import Layout
    from devices.fabric.host.segment import make

    descriptor = make("litmus", Layout(2).total)
    context = multiprocessing.get_context("forkserver")
    begin = time.monotonic()
    ends, ranks = [], []
    for rank in range(2):
        here, there = context.Pipe()
        process = context.Process(target=_exchange, args=(rank, os.getpid(), descriptor, there), daemon=True)
        process.start()
        there.close()
        ends.append(here)
        ranks.append(process)
    try:
        wrong = [end.recv() for end in ends]
    finally:
        for process in ranks:
            process.kill()
            process.join()
        os.close(descriptor)
    with capsys.disabled():
        print(f"\n{2 * ROUNDS:,} messages in {time.monotonic() - begin:.0f} s, {sum(wrong)} with wrong data")
    assert wrong == [0, 0]
