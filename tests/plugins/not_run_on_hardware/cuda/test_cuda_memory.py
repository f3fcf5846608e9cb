"""Memory of GPUs that ranks map, on a stand-in for CUDA's runtime."""

from __future__ import annotations

import ctypes
import os
import weakref
from dataclasses import replace

import pytest
import ranks
import torch
import torch.distributed as dist
from cuda_machines import machine
from cuda_runtime_stand_in import Runtime
from memory_of_devices import every_verb, group_of_its_own
from shared_memory import NEEDS_SHARED_MEMORY

import devices
from devices import Capabilities
from devices.algorithms.verbs import Verbs
from devices.errors import UnsupportedError
from devices_cuda import group as cuda
from devices_cuda.dlpack import tensor_at
from devices_cuda.memory import CudaMemory, out_of_reach, runtime, why_apart

HERE = torch.device("cpu")


def test_memory_is_a_tensor_where_it_lies_and_is_given_back() -> None:
    library = Runtime()
    memory = CudaMemory(HERE, library)
    mine = memory.allocate(4096)
    assert (mine.dtype, mine.shape, mine.device) == (torch.uint8, (4096,), HERE)
    mine.fill_(7)
    assert library.own[mine.data_ptr()][1][:3] == b"\x07\x07\x07"
    memory.free(mine)
    assert library.own == {}


def test_a_tensor_over_memory_lasts_as_long_as_a_view_of_it_and_no_longer() -> None:
    buffer = (ctypes.c_ubyte * 64)(*range(64))
    tensor = tensor_at(ctypes.addressof(buffer), 64, HERE)
    view, gone = tensor[5:8], weakref.ref(tensor)
    del tensor
    assert view.tolist() == [5, 6, 7]
    buffer[6] = 60
    assert view.tolist() == [5, 60, 7]
    del view
    assert gone() is None


def test_what_the_runtime_refuses_is_an_error_in_its_words_and_is_not_remembered() -> None:
    library = Runtime(limit=100)
    memory = CudaMemory(HERE, library)
    with pytest.raises(RuntimeError, match=r"cudaMalloc: out of memory \(error 2 of CUDA's runtime\)"):
        memory.allocate(101)
    mine = memory.allocate(100)
    with pytest.raises(RuntimeError, match="cudaIpcOpenMemHandle: invalid resource handle"):
        memory.map(memory.handle(mine), 100)
    with pytest.raises(RuntimeError, match="cudaIpcCloseMemHandle: invalid argument"):
        memory.unmap(mine)
    assert library.last_error == 0
    memory.free(mine)
    with pytest.raises(RuntimeError, match="cudaFree: invalid argument"):
        memory.free(mine)


def test_a_torch_without_cuda_has_no_runtime_to_ask() -> None:
    if torch.version.cuda is not None:
        pytest.skip(f"needs a torch without CUDA, found one for {torch.version.cuda}")
    with pytest.raises(RuntimeError, match="this torch was built without CUDA"):
        runtime()


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch that was built with CUDA")
def test_the_runtime_library_that_torch_has_loaded_has_what_is_called() -> None:
    library = runtime()
    for name in (
        "Malloc",
        "Free",
        "IpcGetMemHandle",
        "IpcOpenMemHandle",
        "IpcCloseMemHandle",
        "GetLastError",
        "DeviceGetByPCIBusId",
        "DeviceCanAccessPeer",
    ):
        assert callable(getattr(library, f"cuda{name}"))
    with pytest.raises(RuntimeError, match=r"^cudaIpcOpenMemHandle: .* \(error \d+ of CUDA's runtime\)$"):
        CudaMemory(HERE, library).map("00" * 64, 1)


def test_gpus_that_nvml_says_are_apart_are_not_mapped() -> None:
    whole = machine("a100-pcie-bridges.json")
    first, second, third = (gpu.pci for gpu in whole.gpus[:3])
    assert why_apart(whole, first, [first, second, None, "0000:ff:00.0"]) == ""
    torn = replace(whole, pairs=tuple(replace(pair, read=False) if pair.second == 2 else pair for pair in whole.pairs))
    said = f"its GPU, {first}, does not reach the memory of the GPU {third}, as NVML says"
    assert why_apart(torn, first, [first, second, third]) == said
    assert why_apart(torn, third, [third]) == ""
    assert why_apart(torn, None, [third]) == ""


def test_gpus_that_cudas_runtime_says_are_apart_are_not_mapped() -> None:
    first, second, third, hidden = (f"0000:0{bus}:00.0" for bus in range(1, 5))
    library = Runtime(gpus=[first, second, third], apart=[(0, 2)])
    assert out_of_reach(library, 0, [first, second, None, hidden]) == ""
    said = f"its GPU, cuda:0, does not reach the memory of the GPU {third}, as CUDA's runtime says"
    assert out_of_reach(library, 0, [hidden, first, second, third]) == said
    assert out_of_reach(library, 2, [first, third]) == ""
    assert library.last_error == 0


def with_a_gpu_each(rank: int, library: Runtime) -> None:
    """Let the plugin find a GPU of this rank's own, over that runtime, and be asked for mapped memory."""
    cuda.place = lambda _: {"host": "here", "gpu": f"PCI 0:{rank}:0", "nccl": "2.27.5", "pci": None}
    cuda.memory_of = lambda *_: CudaMemory(HERE, library)
    os.environ[cuda.GROUPS] = "peer"


def over_cudas_runtime() -> tuple[str, list[int]]:
    """Call every verb; return what carries them, and what is left allocated and open."""
    with devices.init(timeout=60) as world:
        library = Runtime()
        with_a_gpu_each(world.rank, library)
        group = group_of_its_own("gpus")
        communicator = cuda.open_group(group)
        verbs = Verbs(communicator, group, Capabilities(frozenset()))
        every_verb(verbs, 600_000)
        dist.barrier()
        verbs.close()
        dist.barrier()
        again = devices.open_peer_memory(group_of_its_own("again"), "no more of it", "a test")
        again.close()
        return communicator.note, [len(library.own), len(library.open)]


@pytest.mark.slow
@NEEDS_SHARED_MEMORY
def test_every_verb_goes_through_handles_of_cudas_runtime_and_all_is_given_back() -> None:
    for note, left in ranks.run(3, over_cudas_runtime, timeout=120):
        asked = "for DEVICES_CUDA_GROUPS=peer asks for it; "
        assert note.startswith(f"through memory that the ranks map of each other's devices, {asked}")
        assert left == [0, 0]


def not_linked() -> str:
    with devices.init(timeout=60) as world:
        library = Runtime(is_linked=world.rank == 0)
        communicator = devices.open_peer_memory(group_of_its_own("gpus"), CudaMemory(HERE, library), "a test")
        communicator.close()
        with_a_gpu_each(world.rank, library)
        with pytest.raises(UnsupportedError, match="asks for it, and the memory of devices cannot be mapped: rank 1: "):
            cuda.open_group(group_of_its_own("more gpus"))
        return communicator.note


@pytest.mark.slow
@NEEDS_SHARED_MEMORY
def test_where_the_runtime_maps_nothing_host_memory_serves_and_its_words_say_why() -> None:
    for note in ranks.run(2, not_linked, timeout=120):
        assert note.startswith(
            "through host memory, for a test, and the memory of devices is not mapped: rank 1: the memory of the "
            "device of rank 0 cannot be mapped: cudaIpcOpenMemHandle: peer access is not supported between these two "
            "devices"
        )
