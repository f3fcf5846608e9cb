"""The CUDA backend: NVIDIA GPUs, found without a CUDA context; groups of ranks are carried by torch's NCCL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from devices import Backend, Capabilities, Communicator, Device, Group, Probe, Variable, hookimpl

if TYPE_CHECKING:
    from devices.topology import Topology


@final
class CudaBackend(Backend):
    """NVIDIA GPUs, as NVML lists them and CUDA_VISIBLE_DEVICES leaves them."""

    name = "cuda"
    device_type = "cuda"
    priority = 100
    verified = (
        "not run on hardware: finding GPUs was tried on records of machines and on what NVML says without one, groups "
        "and mapped memory on what stands for NCCL and for CUDA's runtime"
    )

    def probe(self) -> Probe:
        from devices_cuda.presence import probe

        return probe()

    def devices(self) -> Sequence[Device]:
        from devices_cuda.presence import devices

        return devices()

    def capabilities(self, device: Device) -> Capabilities:
        from devices_cuda.abilities import capabilities

        return capabilities(device)

    def topology(self) -> Topology | None:
        from devices_cuda.presence import topology_of_this_host

        return topology_of_this_host()

    def launch_environment(self, ranks: int | None = None, local_rank: int | None = None) -> Sequence[Variable]:
        from devices_cuda.launch import own_variables, shared_variables, this_host

        if local_rank is None:
            return shared_variables(this_host(), os.environ, ranks)
        return own_variables(this_host(), os.environ, ranks, local_rank)

    def local_ranks(self) -> int | None:
        from devices_cuda.launch import local_ranks, this_host

        return local_ranks(this_host(), os.environ)

    def contradictions(self) -> Sequence[str]:
        from devices_cuda.misfits import contradictions

        return contradictions()

    def open(self, group: Group) -> Communicator:
        from devices_cuda.group import open_group

        return open_group(group)


@hookimpl
def devices_backend() -> Backend:
    return CudaBackend()
