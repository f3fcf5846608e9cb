"""What does not fit together on this host: what NVML and nvidia-smi say, what is set, what a GPU has not joined."""

from __future__ import annotations

import contextlib
import os

from devices.errors import TopologyError
from devices_cuda.compare import disagreements
from devices_cuda.files import matrix_of_this_host
from devices_cuda.graph import faults
from devices_cuda.launch import contradictions as of_network
from devices_cuda.presence import AbsentError, host, numbering
from devices_cuda.record import RecordError
from devices_cuda.visibility import VARIABLE, visible

_SECONDS = 1.0


def contradictions() -> tuple[str, ...]:
    """Return a sentence for each thing that does not fit; none where no driver answers, which the probe says."""
    try:
        found = host()
    except AbsentError:
        return ()
    left = visible(found, os.environ.get(VARIABLE))
    said = [left.reason, numbering(found), *of_network(os.environ)]
    try:
        said += faults(found, left.seen)
    except TopologyError as error:
        said.append(f"what NVML says contradicts itself: {error}")
    # There may be no second source, or none in time.
    with contextlib.suppress(RecordError):
        said += disagreements(found, matrix_of_this_host(seconds=_SECONDS))
    return tuple(f"cuda: {each}" for each in said if each)
