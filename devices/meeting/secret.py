"""Ranks prove to each other that they know DEVICES_SECRET, which itself does not go anywhere.

Each draws a number for this one time. A proof is a code (HMAC-SHA256) over a rank and the numbers of all ranks, so it
is of no use to another rank, nor at another time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets

import torch.distributed as dist

from devices._store import Store
from devices.errors import WorldError

SHORTEST = 16
"""How many characters a secret has at least."""


def authentication() -> str:
    """Return in words whether the ranks of this program are authenticated."""
    if secret():
        return "ranks are authenticated by DEVICES_SECRET"
    return "ranks are not authenticated, for DEVICES_SECRET is not set"


def secret() -> bytes:
    """Return the secret; empty if there is none.

    Raises:
        WorldError: it can be guessed.
    """
    found = os.environ.get("DEVICES_SECRET", "")
    if found and len(found) < SHORTEST:
        raise WorldError(f"DEVICES_SECRET is {len(found)} characters long; {SHORTEST} are the least")
    return found.encode()


def authenticate(store: dist.Store, rank: int, size: int) -> None:
    """Return once every rank has proved that it knows the secret, if this one has any.

    Args:
        store: of this world alone. All ranks have come, and all have a secret or none has.
        rank: this rank.
        size: the number of ranks.

    Raises:
        WorldError: a rank has another secret, or none, whatever it says.
    """
    if not (key := secret()):
        return
    shared, ranks = Store(store), range(size)
    mine = secrets.token_hex(16)
    shared.set(f"secret/drawn/{rank}", mine)
    drawn = shared.get_all([f"secret/drawn/{each}" for each in ranks])
    # What is there in this rank's place need not be what it has set.
    drawn[rank] = mine
    shared.set(f"secret/proof/{rank}", _proof(key, rank, drawn))
    proofs = shared.get_all([f"secret/proof/{each}" for each in ranks])
    wrong = [each for each in ranks if not hmac.compare_digest(str(proofs[each]), _proof(key, each, drawn))]
    if wrong:
        named = ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise WorldError(
            f"rank {rank} of {size}: DEVICES_SECRET is another here than on rank{'s' if len(wrong) > 1 else ''} "
            f"{named}; nothing was sent"
        )


def _proof(key: bytes, rank: int, drawn: list[str]) -> str:
    said = json.dumps(["devices", rank, drawn], ensure_ascii=True)
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()
