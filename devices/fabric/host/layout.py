"""Where everything lies in a group's shared memory. All numbers are bytes, but for `...word`, which count 8 of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

SMALL = 1 << 16
"""Up to so many bytes a collective goes through the slots in one step: every rank reads all of them.

One step beats two below 64 to 128 KiB (measured on 2 cores, see docs/measured.md).
"""

DIRECT = 1 << 14
"""Of more bytes than these an all_reduce of tensors in fabric memory is done where they lie."""

LINE = 64
"""A cache line of x86-64. What one rank alone writes has lines of its own."""

WORD = 8
REPORT = 4096
BUFFER = 2 << 20

# The words of a rank's control lines.
FLAG = 0
"""Two words: which call was made last into slot 0, and into slot 1."""
PLACE = 2
"""Two words: where in fabric memory the tensor of that call lies, plus 1; 0 for one that lies elsewhere."""
STEP = 8
"""How many steps of large collectives this rank has taken."""
STATE = 16
ARENA = 17
"""The descriptor of this rank's fabric memory, plus 1, and its process: which opens it for the peers."""
ARENA_BYTES = 18
RECOVERY = 19
CLOSED = 20
"""Whether this rank has closed the group, whatever its STATE tells of how."""
CONTROL_WORDS = 24

# The words of a rank's board: what it shows its peers through the fabric interface.
LONGEST = 0
"""How far from where it belongs a name was ever put into the index."""
LANES = 8
"""The first of its lanes."""
EXTRA_LANES = 64
"""A rank has so many lanes, and one more for each rank."""
ENTRIES = 4096
"""So many tensors and notes may be shown at once."""
INDEX = 2 * ENTRIES
BODY = 2048
"""Up to so many bytes of text and data lie in the entry itself, and what is more in fabric memory."""

# What STATE holds.
ABSENT, HERE, LEFT, FAILED = range(4)


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of the memory of a group of `size` ranks, all of it zeros at first, and none used before it is written.

    Args:
        size: the number of ranks.
        has_boards: whether there is a board for each.
    """

    size: int
    has_boards: bool = False

    def control_word(self, rank: int) -> int:
        return 8 + rank * CONTROL_WORDS

    @property
    def _reports(self) -> int:
        return _paged((8 + self.size * CONTROL_WORDS) * WORD)

    def report(self, rank: int) -> int:
        """What a rank says of an error: its length in 4 bytes, then JSON."""
        return self._reports + rank * REPORT

    @property
    def counts(self) -> int:
        """For even and odd calls two tables of words: row i is how many bytes rank i sends to, and expects of, each."""
        return self._reports + self.size * REPORT

    @property
    def _slots(self) -> int:
        return _paged(self.counts + 4 * self.size * self.size * WORD)

    def slot(self, rank: int, parity: int) -> int:
        """`SMALL` bytes of a rank for its small collectives, one of two in turns."""
        return self._slots + (2 * rank + parity) * SMALL

    @property
    def _buffers(self) -> int:
        return self._slots + 2 * self.size * SMALL

    def buffer(self, rank: int, parity: int) -> int:
        """`BUFFER` bytes of a rank that large collectives go through piece by piece, one of two in turns."""
        return self._buffers + (2 * rank + parity) * BUFFER

    @property
    def ring_bytes(self) -> int:
        """The bytes of messages from one rank to another that may be on their way."""
        return (1 << 20) if self.size <= 4 else (1 << 18) if self.size <= 16 else (1 << 16)

    def channel(self, source: int, target: int) -> int:
        """Messages from one rank to another: a line that the source writes, one that the target writes, the ring."""
        number = source * self.size + target
        return self._buffers + 2 * self.size * BUFFER + number * (2 * LINE + self.ring_bytes)

    @property
    def lanes(self) -> int:
        """The number of each rank's lanes."""
        return EXTRA_LANES + self.size

    def board_word(self, rank: int) -> int:
        """A rank's board, all of it written by that rank but for who has closed an entry: lanes, index, entries."""
        return (_paged(self.channel(self.size, 0)) + rank * self._board_bytes) // WORD

    def index_word(self, rank: int) -> int:
        return self.board_word(rank) + self._head_bytes // WORD

    def entry_word(self, rank: int, number: int) -> int:
        return self.index_word(rank) + INDEX + number * self.entry_bytes // WORD

    def body_bytes(self, words: int) -> int:
        """Where in an entry of so many words, and one for each rank, its text and data begin."""
        return -(-(words + self.size) * WORD // LINE) * LINE

    @property
    def entry_bytes(self) -> int:
        return _paged(self.body_bytes(8) + BODY)

    @property
    def _head_bytes(self) -> int:
        return _paged((LANES + self.lanes) * WORD)

    @property
    def _board_bytes(self) -> int:
        return self._head_bytes + INDEX * WORD + ENTRIES * self.entry_bytes

    @property
    def total(self) -> int:
        end = _paged(self.channel(self.size, 0))
        return end + self.size * self._board_bytes if self.has_boards else end


def _paged(bytes: int) -> int:
    return -(-bytes // 4096) * 4096
