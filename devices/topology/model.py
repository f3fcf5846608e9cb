"""A described model: how much it computes, holds and moves. Arithmetic alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from devices.errors import ArgumentError, did_you_mean

WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8": 1.0, "float4": 0.5}
"""The bytes of an element, of the dtypes that a model can compute in."""

RATES = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16", "float8": "fp8", "float4": "fp4"}
"""The figure of a chip that says how fast it computes in a dtype."""

TASKS = ("train", "serve")
"""What a model can be wanted for."""

AXES = ("pp", "dp", "fsdp", "ep", "tp")
"""What the axes of a mesh may be, the outermost first: those whose members speak least are the farthest apart."""

STATE = 16.0
"""Bytes of training for each parameter: weight and gradient in 16 bits, and Adam's two moments and the weight in 32."""

KEPT = {"none": 34.0, "attention": 34.0, "all": 2.0}
"""Bytes that the backward pass finds kept for each layer, token and element of `hidden`, by what is computed again.

With "none" also those of the attention's scores; see "Reducing Activation Recomputation in Large Transformer Models".
"""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A transformer, as far as its time depends on it.

    Args:
        parameters: how many in all.
        layers: how many.
        hidden: the width of a layer's input.
        heads: of the attention.
        sequence: tokens of a sequence.
        kv_heads: heads of keys and values; as many as `heads` if not said.
        head: the width of a head; `hidden / heads` if not said.
        active: parameters that a token meets; all if not said.
        experts: of the parameters, those that `ep` spreads.
        choices: how many experts a token meets in a layer.
        dtype: what it computes in: one of `WIDTHS`.

    >>> Model(parameters=8e9, layers=32, hidden=4096, heads=32, kv_heads=8, sequence=8192).cache_per_token / 1024
    128.0
    """

    parameters: float
    layers: int
    hidden: int
    heads: int
    sequence: int
    kv_heads: int | None = None
    head: int | None = None
    active: float | None = None
    experts: float = 0
    choices: int = 1
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("parameters", "layers", "hidden", "heads", "sequence"):
            _positive(name, getattr(self, name))
        for name in ("kv_heads", "head", "active"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ArgumentError(
                f"kv_heads={self.kv_heads} does not divide the {self.heads} heads, of which each serves as many"
            )
        if self.dtype not in WIDTHS:
            hint = did_you_mean(str(self.dtype), WIDTHS)
            raise ArgumentError(f"a model computes in one of {', '.join(WIDTHS)}, not in {self.dtype!r}{hint}")
        if self.head is None and self.hidden % self.heads:
            raise ArgumentError(f"{self.heads} heads do not divide hidden={self.hidden}; say `head`, the width of one")
        if not 0 <= self.experts <= self.parameters or self.computing > self.parameters:
            raise ArgumentError(
                f"of {self.parameters:g} parameters {self.experts:g} cannot be experts' and {self.computing:g} active"
            )

    @property
    def width(self) -> float:
        """The bytes of an element."""
        return WIDTHS[self.dtype]

    @property
    def computing(self) -> float:
        """The parameters that a token meets."""
        return self.parameters if self.active is None else self.active

    @property
    def head_width(self) -> int:
        """The width of a head."""
        return self.hidden // self.heads if self.head is None else self.head

    @property
    def cache_per_token(self) -> float:
        """The bytes of keys and values that a token leaves in all layers."""
        return 2 * self.layers * (self.kv_heads or self.heads) * self.head_width * max(self.width, 1.0)

    def flops_per_token(self, context: float) -> float:
        """Return what the forward pass computes for a token that sees `context` tokens before it."""
        return 2 * self.computing + 4 * self.layers * self.heads * self.head_width * context

    def parameters_per_rank(self, mesh: dict[str, int]) -> float:
        """Return how many parameters a rank works with; `fsdp` brings them together, so that it spreads none."""
        others = (self.parameters - self.experts) / (mesh["tp"] * mesh["pp"])
        return others + self.experts / (mesh["tp"] * mesh["pp"] * mesh["ep"])


def mesh_of(axes: object) -> dict[str, int]:
    """Return the length of each axis that there can be, 1 where none is said.

    >>> mesh_of({"dp": 4, "tp": 8})
    {'pp': 1, 'dp': 4, 'fsdp': 1, 'ep': 1, 'tp': 8}
    """
    if not isinstance(axes, dict):
        raise ArgumentError(f"a mesh is a dict of axes and their lengths, got {axes!r}")
    for name, length in axes.items():
        if name not in AXES:
            raise ArgumentError(
                f"no time is known of an axis {name!r}{did_you_mean(str(name), AXES)}; of {', '.join(AXES)}"
            )
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ArgumentError(f"axis {name!r} must be a whole number of at least 1, got {length!r}")
    return {name: axes.get(name, 1) for name in AXES}


def check_mesh(model: Model, mesh: dict[str, int]) -> None:
    """Refuse a mesh that the model cannot be split over."""
    if model.layers % mesh["pp"]:
        raise ArgumentError(f"pp={mesh['pp']} does not divide the {model.layers} layers")
    if model.heads % mesh["tp"]:
        raise ArgumentError(f"tp={mesh['tp']} does not divide the {model.heads} heads")
    if mesh["ep"] > 1 and not model.experts:
        raise ArgumentError(f"ep={mesh['ep']} spreads experts, and the model has none")


def _positive(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ArgumentError(f"`{name}` of a model is a number above 0, got {value!r}")
