"""What the stand-in enforces. Sources are the sections of the project's facts about hardware, and their keys there."""

from __future__ import annotations

import torch

WORLD_SIZES = (1, 2, 4, 8, 16)
"""3.3, third-party log of the runtime on Trn2, 2026: these, "or a multiple of 32"; 12 and 24 fail."""

WORLD_SIZE_MULTIPLE = 32

MAX_GROUPS = 16
"""3.3, release notes of 2.32: replica groups in one compiled program (12 in the older header)."""

REDUCE_OPS = ("SUM", "MIN", "MAX")
"""3.2, NKI collectives (add, min, max only) and the pre-release group."""

DTYPES = frozenset(
    (
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float8_e5m2,
        torch.float16,
        torch.bfloat16,
        torch.float32,
    )
)
"""The catalogue's `neuron.toml` and `trainium2.toml`, from NKI's table of dtypes and the compiler's errors: no 64-bit
float, no complex numbers (EVRF004), and on Trn2 no float8_e4m3fn (EVRF051), whose values beyond 240 the chip's own
e4m3 does not have."""

ROUNDED = {torch.float64: torch.float32}
"""The catalogue's `neuron.toml`: the pre-release backend lets a float64 tensor be, and computes it in 32 bits."""

REDUCED = frozenset((torch.uint8, torch.int8, torch.uint16, torch.int16, torch.float16, torch.bfloat16, torch.float32))
"""3.2, nccom-test's dtypes without those that the compiler's errors EVRF061 and EVRF063 refuse: 32-bit and 64-bit
integers are reduced through float32."""

NARROWED = {torch.int64: torch.int32}
"""3.2, third-party observation: int64 travels as int32, so that what does not fit is lost without a word."""

MEMORY = 24 << 30
"""3.3, third-party observation: bytes of the bank that one rank of trn2.48xlarge has at LNC 2."""

CORES = 64
"""1.1 and 1.3: trn2.48xlarge has 16 chips of 4 logical cores at LNC 2."""


def check_size(size: int, what: str) -> None:
    """Raise, as the runtime does, unless so many cores may work together."""
    if size not in WORLD_SIZES and size % WORLD_SIZE_MULTIPLE:
        legal = ", ".join(map(str, WORLD_SIZES))
        raise RuntimeError(f"{what} of {size} logical cores: it must be {legal} or a multiple of {WORLD_SIZE_MULTIPLE}")
