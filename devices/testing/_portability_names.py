"""What binds a program to one vendor, and what a portable program writes in its place.

In a replacement, `world` is what `devices.init()` returned. Each name was looked up in torch 2.13 and in 2.11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MODULE = "torch.get_device_module(world.device)"
_GUARD = "; it raises where torch.accelerator.is_available() is false"
_NONE = "no portable replacement: "
_NOTHING = "nothing to write: "
_COMPILED = f"{_NONE}torch.compile(mode='reduce-overhead') records a graph where the device has one"
_STATE = f"{_MODULE}.%s, which a CPU has not; the CPU's own is torch.%s"
_TENSOR = "torch.tensor(data, dtype=torch.%s, device=world.device)"

DEVICE = "world.device"
DEVICE_TYPE = "world.device.type"
BACKEND = '"devices"'
BRANCH = "torch.accelerator.is_available(), or devices.device(dtype=...) for what the branch needs"
ASK_BACKEND = f"{_NONE}devices.explain() says which backend was chosen and why"
TENSOR_METHOD = ".to(world.device)"
IS_CUDA = ".device == world.device"
TYPED_STRING = "torch.set_default_device(world.device), and torch.set_default_dtype(...) for the dtype"
WITHOUT = f"{_NOTHING}leave it out; the device is that of the module or of the group"

_DTYPES = {
    "BFloat16": "bfloat16",
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "Int": "int32",
    "Long": "int64",
    "Short": "int16",
}
_IN_MODULE = ("StreamContext", "current_stream", "is_initialized", "stream", "synchronize")
_IN_ACCELERATOR = (
    "empty_cache",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
)
_GRAPHS = ("CUDAGraph", "graph", "graph_pool_handle", "is_current_stream_capturing", "make_graphed_callables")

# What torch.cuda has, and torch.xpu, torch.mps and the like by the same names.
_DEVICE_MODULE = {
    "": _MODULE,
    **{name: f"{_MODULE}.{name}" for name in _IN_MODULE},
    **{name: f"torch.accelerator.{name}{_GUARD}" for name in _IN_ACCELERATOR},
    **dict.fromkeys(_GRAPHS, _COMPILED),
    **{f"{name}Tensor": _TENSOR % dtype for name, dtype in _DTYPES.items()},
    "AcceleratorError": "torch.AcceleratorError",
    "Event": f"{_MODULE}.Event; a CPU's measures no time, so synchronize and read a clock there",
    "OutOfMemoryError": "torch.OutOfMemoryError",
    "Stream": f"{_MODULE}.Stream",
    "amp": "torch.amp",
    "amp.GradScaler": "torch.amp.GradScaler(world.device.type)",
    "amp.autocast": "torch.amp.autocast(world.device.type)",
    "amp.custom_bwd": "torch.amp.custom_bwd(device_type=world.device.type)",
    "amp.custom_fwd": "torch.amp.custom_fwd(device_type=world.device.type)",
    "comm": "devices.broadcast, devices.scatter, devices.gather, devices.all_reduce",
    "current_device": DEVICE,
    "default_generators": "torch.Generator(device=world.device)",
    "default_stream": f"{_MODULE}.current_stream, before another stream is entered",
    "device": f"torch.accelerator.device_index{_GUARD}",
    "device_count": "torch.accelerator.device_count",
    "get_device_capability": f"{_NONE}it is NVIDIA's own number; ask for a dtype, devices.device(dtype=...)",
    "get_device_name": "devices.available(), whose devices have a name",
    "get_device_properties": "devices.available(), whose devices have a name, memory and free memory",
    "get_rng_state": _STATE % ("get_rng_state", "get_rng_state"),
    "get_rng_state_all": _STATE % ("get_rng_state_all", "get_rng_state"),
    "init": f"{_NOTHING}a device opens at its first use",
    "initial_seed": "torch.initial_seed",
    "is_available": "torch.accelerator.is_available",
    "is_bf16_supported": "devices.device(dtype=torch.bfloat16), which raises where no device has it",
    "manual_seed": "torch.manual_seed, which seeds every device",
    "manual_seed_all": "torch.manual_seed, which seeds every device",
    "max_memory_cached": f"torch.accelerator.max_memory_reserved{_GUARD}",
    "mem_get_info": f"torch.accelerator.get_memory_info{_GUARD}",
    "memory_cached": f"torch.accelerator.memory_reserved{_GUARD}",
    "nccl": f"{_NONE}only NCCL has it; the verbs are devices.all_reduce and its like",
    "nvtx": "torch.profiler.record_function, a context manager",
    "profiler": "torch.profiler.profile",
    "reset_max_memory_allocated": f"torch.accelerator.reset_peak_memory_stats{_GUARD}",
    "reset_max_memory_cached": f"torch.accelerator.reset_peak_memory_stats{_GUARD}",
    "seed": "torch.seed, which seeds every device",
    "seed_all": "torch.seed, which seeds every device",
    "set_device": f"{_NOTHING}devices.init() sets this rank's device",
    "set_rng_state": _STATE % ("set_rng_state", "set_rng_state"),
    "set_rng_state_all": _STATE % ("set_rng_state_all", "set_rng_state"),
    "set_stream": f"{_MODULE}.stream, a context manager",
}
_DEVICE_MODULES = ("torch.cuda", "torch.xpu", "torch.mps", "torch.mtia", "torch.npu", "torch.hpu", "torch.neuron")
# Files of torch.cuda whose names torch.cuda also has itself.
_FILES = ("graphs.", "memory.", "random.", "streams.", "amp.autocast_mode.", "amp.grad_scaler.")

_PRECISION = 'torch.set_float32_matmul_precision("high")'
_ATTENTION = "torch.nn.attention.sdpa_kernel, a context manager"
_BACKENDS = {
    "torch.backends.cuda": f"{_NONE}only NVIDIA's libraries read it; leave it out",
    "torch.backends.cuda.enable_cudnn_sdp": _ATTENTION,
    "torch.backends.cuda.enable_flash_sdp": _ATTENTION,
    "torch.backends.cuda.enable_math_sdp": _ATTENTION,
    "torch.backends.cuda.enable_mem_efficient_sdp": _ATTENTION,
    "torch.backends.cuda.is_built": "torch.accelerator.current_accelerator",
    "torch.backends.cuda.matmul.allow_tf32": _PRECISION,
    "torch.backends.cuda.matmul.fp32_precision": _PRECISION,
    "torch.backends.cuda.sdp_kernel": _ATTENTION,
    "torch.backends.cudnn": f"{_NONE}only cuDNN reads it; leave it out",
    "torch.backends.cudnn.allow_tf32": _PRECISION,
    "torch.backends.cudnn.conv.fp32_precision": _PRECISION,
    "torch.backends.cudnn.deterministic": "torch.use_deterministic_algorithms(True)",
    "torch.backends.cudnn.fp32_precision": _PRECISION,
    "torch.backends.cusparselt": f"{_NONE}only NVIDIA's library reads it; leave it out",
    "torch.backends.miopen": f"{_NONE}only AMD's library reads it; leave it out",
    "torch.backends.mps": f"{_NONE}only Apple's GPUs have it; leave it out",
    "torch.backends.mps.is_available": "torch.accelerator.is_available",
    "torch.backends.mps.is_built": "torch.accelerator.current_accelerator",
}

_OPTIONS = f"{_NONE}it is that library's own; pass no options"
_FOUND = "devices.backends(), and devices.available() for what is here"
_GROUPS = {
    **{f"torch.distributed.Backend.{name}": BACKEND for name in ("GLOO", "MPI", "NCCL", "UCC", "XCCL")},
    **{f"torch.distributed.is_{name}_available": _FOUND for name in ("gloo", "mpi", "nccl", "ucc", "xccl")},
    **{f"torch.distributed.ProcessGroup{name}": _OPTIONS for name in ("Gloo", "MPI", "NCCL", "UCC", "XCCL")},
    "torch.distributed.nccl": f"{_NONE}only NCCL has it; the verbs are devices.all_reduce and its like",
}

_METHODS = {
    "torch.Tensor.cuda": "torch.Tensor.to, with world.device",
    "torch.Tensor.is_cuda": "torch.Tensor.device, compared with world.device",
    "torch.nn.Module.cuda": "torch.nn.Module.to, with world.device",
}
_OF_TORCH = {
    "torch.get_autocast_gpu_dtype": "torch.get_autocast_dtype(world.device.type)",
    "torch.set_autocast_gpu_dtype": "torch.set_autocast_dtype(world.device.type, dtype)",
    "torch.version.cuda": f"{_NONE}devices.explain() says what the program runs on",
    "torch.version.hip": f"{_NONE}devices.explain() says what the program runs on",
}

_LAZY = f"{_NOTHING}a step needs no mark; torch.compile makes graphs of what is to be one"
_STYLES = "torch.distributed.tensor.parallel, or devices.place with a plan"
_PACKAGES = {
    "apex": "torch.amp, torch.optim and torch.nn have what was taken up from it",
    "apex.amp": "torch.amp",
    "apex.normalization": "torch.nn.LayerNorm, torch.nn.RMSNorm",
    "apex.optimizers": "torch.optim, with fused=True",
    "apex.parallel.DistributedDataParallel": "torch.nn.parallel.DistributedDataParallel",
    "cupy": f"{_NONE}write it on torch tensors",
    "flash_attn": "torch.nn.functional.scaled_dot_product_attention",
    "neuronx_distributed": _STYLES,
    "numba.cuda": f"{_NONE}a kernel is its vendor's; keep a path in torch beside it",
    "pynvml": "devices.available(), whose devices have memory and free memory",
    "torch.utils.cpp_extension.CUDAExtension": f"{_NONE}a kernel is its vendor's; keep a path in torch beside it",
    "torch_neuronx": f"{_NONE}write plain torch on world.device",
    "torch_neuronx.trace": "torch.compile",
    "torch_npu": f"{_NONE}write plain torch on world.device",
    "torch_xla": f"{_NONE}write plain torch on world.device",
    "torch_xla.core.xla_model": "devices.init(), and plain torch on world.device",
    "torch_xla.core.xla_model.all_gather": "devices.all_gather",
    "torch_xla.core.xla_model.all_reduce": "devices.all_reduce",
    "torch_xla.core.xla_model.all_to_all": "devices.all_to_all",
    "torch_xla.core.xla_model.get_local_ordinal": "the variable LOCAL_RANK, which torchrun sets",
    "torch_xla.core.xla_model.get_ordinal": "world.rank",
    "torch_xla.core.xla_model.is_master_ordinal": "world.rank == 0",
    "torch_xla.core.xla_model.mark_step": _LAZY,
    "torch_xla.core.xla_model.optimizer_step": "devices.all_reduce of the gradients, then the optimizer's own step",
    "torch_xla.core.xla_model.reduce_scatter": "devices.reduce_scatter",
    "torch_xla.core.xla_model.rendezvous": "devices.barrier",
    "torch_xla.core.xla_model.save": "torch.save, where world.rank == 0",
    "torch_xla.core.xla_model.wait_device_ops": f"{_MODULE}.synchronize",
    "torch_xla.core.xla_model.xla_device": DEVICE,
    "torch_xla.core.xla_model.xrt_world_size": "world.size",
    "torch_xla.device": DEVICE,
    "torch_xla.distributed.parallel_loader": f"{_NOTHING}loop over the torch.utils.data.DataLoader, move with .to",
    "torch_xla.distributed.xla_backend": f"{_NOTHING}init_process_group takes {BACKEND}",
    "torch_xla.distributed.xla_multiprocessing": f"{_NOTHING}torchrun starts the ranks",
    "torch_xla.launch": f"{_NOTHING}torchrun starts the ranks",
    "torch_xla.runtime.global_ordinal": "world.rank",
    "torch_xla.runtime.world_size": "world.size",
    "torch_xla.step": _LAZY,
    "torch_xla.sync": _LAZY,
    "transformer_engine": f"{_NONE}torch.nn has the layers, without float8",
}


_VISIBLE = f"{_NOTHING}devices.init() takes the device of LOCAL_RANK, which torchrun sets"
_TIMEOUT = "devices.init(timeout=...)"
_VARIABLES = {
    "ASCEND_RT_VISIBLE_DEVICES": _VISIBLE,
    "CUDA_VISIBLE_DEVICES": _VISIBLE,
    "HIP_VISIBLE_DEVICES": _VISIBLE,
    "NCCL_ASYNC_ERROR_HANDLING": _TIMEOUT,
    "NCCL_BLOCKING_WAIT": _TIMEOUT,
    "NEURON_RT_VISIBLE_CORES": _VISIBLE,
    "PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF",
    "ROCR_VISIBLE_DEVICES": _VISIBLE,
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": _TIMEOUT,
    "TORCH_NCCL_BLOCKING_WAIT": _TIMEOUT,
    "ZE_AFFINITY_MASK": _VISIBLE,
}
_VARIABLE = re.compile(
    r"(ASCEND|CUBLAS|CUBLASLT|CUDA|CUDNN|HIP|NCCL|NEURON|NVIDIA|PJRT|PYTORCH_CUDA|RCCL|ROCR|TORCH_CUDA|TORCH_NCCL|XLA|ZE)"
    r"_[A-Z0-9_]+"
)
_DEVICE_STRING = re.compile(r"(cuda|hip|hpu|mps|mtia|neuron|npu|xla|xpu)(:\d+)?")
_BACKEND_STRING = re.compile(r"(\w+:)?(ccl|gloo|hccl|mpi|nccl|neuron|ucc|xccl|xla)(,(\w+:)?\w+)*", re.IGNORECASE)
_TENSOR_TYPE = re.compile(r"torch\.(cuda|xpu|mps)\.\w*Tensor")


@dataclass(frozen=True, slots=True)
class Bound:
    """What binds a program to a vendor: of which kind it is, and what a portable program writes instead."""

    kind: str
    replacement: str


_NAMES = {
    **{name: Bound("torch-backends", text) for name, text in _BACKENDS.items()},
    **{name: Bound("backend", text) for name, text in _GROUPS.items()},
    **{name: Bound("vendor-package", text) for name, text in _PACKAGES.items()},
    **{name: Bound("device-method", text) for name, text in _METHODS.items()},
    **{name: Bound("device-module", text) for name, text in _OF_TORCH.items()},
    **{
        f"{module}.{name}" if name else module: Bound("device-module", text)
        for module in _DEVICE_MODULES
        for name, text in _DEVICE_MODULE.items()
    },
}


def bound_name(dotted: str) -> Bound | None:
    """Return what binds `dotted`, a full name, to a vendor; None if nothing does.

    >>> bound_name("torch.cuda.synchronize").replacement
    'torch.get_device_module(world.device).synchronize'
    >>> bound_name("torch.cudagraphs") is None
    True
    """
    for module in _DEVICE_MODULES:
        for file in _FILES:
            if dotted.startswith(f"{module}.{file}"):
                return bound_name(f"{module}.{'amp.' * file.startswith('amp.')}{dotted[len(module) + len(file) + 1 :]}")
    prefix = dotted
    while prefix not in _NAMES:
        prefix, dot, _ = prefix.rpartition(".")
        if not dot and prefix not in _NAMES:
            return None
    if prefix in _DEVICE_MODULES and dotted != prefix:
        return Bound("device-module", f"{_NONE}only {prefix} has it")
    return _NAMES[prefix]


def bound_variable(name: str) -> Bound | None:
    """Return what binds the environment variable `name` to a vendor; None if nothing does."""
    if not _VARIABLE.fullmatch(name):
        return None
    return Bound("environment", _VARIABLES.get(name, f"{_NONE}only that vendor's libraries read it"))


def is_device_string(text: str) -> bool:
    """Return whether `text`, as a whole, names a vendor's device as torch does: "cuda", "xla:1"."""
    return _DEVICE_STRING.fullmatch(text) is not None


def is_backend_string(text: str) -> bool:
    """Return whether `text`, as a whole, names a vendor's backend, or one for each device: "cpu:gloo,cuda:nccl"."""
    return _BACKEND_STRING.fullmatch(text) is not None


def is_tensor_type(text: str) -> bool:
    """Return whether `text`, as a whole, names a device's tensor type: "torch.cuda.FloatTensor"."""
    return _TENSOR_TYPE.fullmatch(text) is not None


def replacements() -> frozenset[str]:
    """Return every replacement that is stated, so that a test can look up the names in them."""
    constants = (DEVICE, DEVICE_TYPE, BACKEND, BRANCH, ASK_BACKEND, TENSOR_METHOD, IS_CUDA, TYPED_STRING, WITHOUT)
    return frozenset((*constants, *(bound.replacement for bound in _NAMES.values()), *_VARIABLES.values()))
