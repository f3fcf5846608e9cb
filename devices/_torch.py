"""The private names of torch that `devices` uses, in one place; tried on torch 2.11, 2.13 and 2.14, on the CPU.

Those for a vendor's own process group are in `devices._torch_groups`. When a new torch moves one, these are the files
to mend.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

AllreduceOptions = c10d.AllreduceOptions
AllgatherOptions = c10d.AllgatherOptions
AllToAllOptions = c10d.AllToAllOptions
BarrierOptions = c10d.BarrierOptions
BroadcastOptions = c10d.BroadcastOptions
GatherOptions = c10d.GatherOptions
ReduceOptions = c10d.ReduceOptions
ReduceScatterOptions = c10d.ReduceScatterOptions
ScatterOptions = c10d.ScatterOptions

PREMUL_SUM: Any = c10d.ReduceOp.RedOpType.PREMUL_SUM  # type: ignore[attr-defined]  # not in the stubs

_TO_TORCH = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.AVG,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "prod": dist.ReduceOp.PRODUCT,
    "band": dist.ReduceOp.BAND,
    "bor": dist.ReduceOp.BOR,
    "bxor": dist.ReduceOp.BXOR,
}
_FROM_TORCH = {op: name for name, op in _TO_TORCH.items()}


def reduce_op(name: str) -> Any:
    """Return torch's reduce op of that name."""
    return _TO_TORCH[name]


def reduce_op_name(op: Any) -> str:
    """Return our name of torch's reduce op; "premul" for a premultiplied sum."""
    return "premul" if getattr(op, "op", op) == PREMUL_SUM else _FROM_TORCH[getattr(op, "op", op)]


def premul_factor(op: Any) -> Any:
    """Return the factor of a premultiplied sum, which before torch 2.13 only its pickled form shows."""
    return op.factor if hasattr(op, "factor") else op.__getstate__()[1]


def flat_verbs(group: Any) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return a native group's all-gather, reduce-scatter and all-to-all over flat tensors, by new or old name.

    torch 2.13 names them `all_gather_single`, `reduce_scatter_single` and `all_to_all_single` on a process
    group; its own backends, and every group of an older torch, have the underscored names alone.
    """
    return (
        getattr(group, "all_gather_single", None) or group._allgather_base,
        getattr(group, "reduce_scatter_single", None) or group._reduce_scatter_base,
        getattr(group, "all_to_all_single", None) or group.alltoall_base,
    )


def resolve_group(name: str) -> dist.ProcessGroup:
    """Return the process group that torch registered under `name`."""
    return c10d._resolve_process_group(name)  # type: ignore[arg-type]


_PICKLING = (
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
    # What these are made of, for who imported them by name before. A rank that only receives comes here late.
    "_object_to_tensor",
    "_tensor_to_object",
)


def refuse_object_collectives(is_ours: Callable[[Any], bool], refusal: Callable[[], Exception]) -> None:
    """Make torch's object collectives, which pickle, raise `refusal()` on groups for which `is_ours` holds.

    Below them a process group sees only bytes and could not tell. Calling this again changes nothing.
    """
    for name in _PICKLING:
        original = getattr(c10d, name)
        if getattr(original, "refuses_pickles", False):
            continue

        def guarded(
            *args: Any,
            _original: Callable[..., Any] = original,
            _signature: inspect.Signature = inspect.signature(original),  # noqa: B008 - one for each function
            **kwargs: Any,
        ) -> Any:
            group = _signature.bind(*args, **kwargs).arguments.get("group")
            if is_ours(group if group is not None else dist.group.WORLD):
                raise refusal()
            return _original(*args, **kwargs)

        guarded = functools.update_wrapper(guarded, original)
        guarded.refuses_pickles = True  # type: ignore[attr-defined]
        for module in (c10d, dist):
            if hasattr(module, name):
                setattr(module, name, guarded)


def hide_from_compiler(kind: type) -> None:
    """Keep torch.compile from tracing the methods of `kind`, and all that they call.

    It would where torch's C++ calls them while a compiled program runs, as DDP's reducer does. The decorator for
    that, `torch.compiler.disable`, imports the compiler, which takes a second, and costs each call something.
    """
    frames: Any = torch._C._dynamo.eval_frame
    for name, method in list(vars(kind).items()):
        if not inspect.isfunction(method):
            continue
        if hasattr(frames, "set_code_exec_strategy"):
            skip = frames._FrameAction.SKIP
            frames.set_code_exec_strategy(method.__code__, frames._FrameExecStrategy(skip, skip))
        else:
            # A torch without it: the decorator that imports the compiler with the first call.
            setattr(kind, name, torch._disable_dynamo(method, recursive=True))


def order_effects_of(op: Any) -> None:
    """Keep compiled calls of the custom op `op` in program order and alive, though nothing uses their results."""
    from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

    _register_effectful_op(op, _EffectType.ORDERED)


def autoload_is_off() -> bool:
    """Return whether torch was told not to load the `torch.backends` entry points by itself."""
    return not torch._is_device_backend_autoload_enabled()


class _ThreadWorlds(threading.local):
    """torch's account of its process groups, one for each thread that began its own; others see the one there was."""

    def __init__(self, shared: Any) -> None:
        for name in _ACCOUNT:
            setattr(self, name, getattr(shared, name))

    def begin(self) -> None:
        """Give this thread an account of its own, an empty one."""
        for name, make in _ACCOUNT.items():
            setattr(self, name, make())

    pg_config_info = type(c10d._world).pg_config_info


_ACCOUNT: dict[str, Callable[[], Any]] = {
    "default_pg": lambda: None,
    "group_count": int,
    **dict.fromkeys(("pg_map", "pg_names", "pg_group_ranks", "pg_backend_config"), dict),
    **dict.fromkeys(("tags_to_pg", "pg_to_tag", "pg_coalesce_state"), dict),
    **({"comms": list} if hasattr(c10d._world, "comms") else {}),
}


@functools.cache
def _settle_device_guard() -> None:
    """Let a thread that never ends be the first to set torch's guard for CUDA devices.

    A torch that is built with CUDA, on a machine without, points to an object of the thread that does, and crashes in
    the next one once that thread has ended; torch 2.11 does, in its first meeting of DTensor with an op.
    """
    settle = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)
    if torch.version.cuda is None or settle is None:
        return
    if threading.current_thread() is threading.main_thread():
        settle()
        return
    settled = threading.Event()

    def keep() -> None:
        settle()
        settled.set()
        threading.Event().wait()

    threading.Thread(target=keep, name="devices keeps torch's device guard", daemon=True).start()
    settled.wait()


@contextlib.contextmanager
def thread_worlds() -> Iterator[Callable[[], None]]:
    """Let each thread that calls what this yields have process groups of its own, from default group to names."""
    _settle_device_guard()
    before = c10d._world
    worlds = _ThreadWorlds(before)
    c10d._world = worlds  # type: ignore[assignment]  # torch asks for no more than the names
    isolate: Callable[[bool], None] = torch._C._distributed_c10d._set_thread_isolation_mode  # type: ignore[attr-defined]
    isolate(True)
    try:
        yield worlds.begin
    finally:
        isolate(False)
        c10d._world = before


class RankGlobals:
    """What torch keeps once for a process, though it is a rank's own, while another thread rank runs.

    That is DTensor's table of ops that are handled in a way of their own, which `loss_parallel` changes while it
    lasts, and its account of random numbers.
    """

    def __init__(self) -> None:
        dispatcher, _ = _dtensor_globals()
        self._handlers = dict(dispatcher._custom_op_handlers) if dispatcher is not None else None
        self._tracker: Any = None

    def enter(self) -> None:
        """Make them this rank's."""
        if self._handlers is not None:
            dispatcher, random = _dtensor_globals()
            dispatcher._custom_op_handlers, random._rng_tracker = self._handlers, self._tracker

    def leave(self) -> None:
        """Keep what they have come to."""
        dispatcher, random = _dtensor_globals()
        if dispatcher is not None:
            table = dispatcher._custom_op_handlers
            # Seen for the first time: every rank goes on with a table of its own.
            self._handlers = dict(table) if self._handlers is None else table
            self._tracker = random._rng_tracker


def _dtensor_globals() -> tuple[Any, Any]:
    """Return where DTensor keeps them; nothing as long as nobody has imported it."""
    tensor = sys.modules.get("torch.distributed.tensor")
    dtensor = getattr(tensor, "DTensor", None)
    return (dtensor._op_dispatcher, tensor._random) if dtensor is not None and tensor is not None else (None, None)


class _OpWatch(TorchDispatchMode):
    """Hands what each op of a thread returns to a function."""

    def __init__(self, returned: Callable[[Any, Any], None], calling: Callable[[Any, Any, Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._returned = returned
        self._calling = calling

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # What that puts around each call takes 250 us.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._calling(func, args, kwargs)
        result = func(*args, **kwargs)
        self._returned(func, result)
        return result


hide_from_compiler(_OpWatch)


@contextlib.contextmanager
def watched_ops(returned: Callable[[Any, Any], None], calling: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """Call `calling(op, args, kwargs)` before each op of this thread and `returned(op, result)` after it."""
    # Entering the mode itself would set flags that torch keeps for all threads in one place.
    _push_mode(_OpWatch(returned, calling))
    try:
        yield
    finally:
        _pop_mode()


def storage_key(tensor: torch.Tensor) -> tuple[torch.UntypedStorage, int]:
    """Return a plain tensor's memory, and what tells it from all others while it is there."""
    storage = tensor.untyped_storage()
    return storage, storage._cdata


def storage_number(storage: torch.UntypedStorage) -> int:
    """Return what tells a memory from all others while it is there."""
    number: int = storage._cdata
    return number


# What `devices.testing._device_tensors` and the files beside it need, to make tensors on a CPU seem to be elsewhere.


class _OpHandler(TorchDispatchMode):
    """Lets a function do each op of a thread in torch's place."""

    def __init__(self, handle: Callable[[Any, Any, Any, Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handle = handle

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._handle(func, types, args, kwargs or {})


# The compiler leaves a program alone while a mode is there, but not what the mode calls.
hide_from_compiler(_OpHandler)


@contextlib.contextmanager
def handled_ops(handle: Callable[[Any, Any, Any, Any], Any]) -> Iterator[None]:
    """Call `handle(op, types, args, kwargs)` in the place of each op of this thread; ops in there are torch's own."""
    _push_mode(_OpHandler(handle))
    try:
        yield
    finally:
        _pop_mode()


def is_pretending() -> bool:
    """Return whether this thread's ops are on tensors without memory, which torch uses to find out shapes."""
    mode: Any = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return mode is not None


class OpFacts:
    """What the declaration of an op says about it.

    Attributes:
        name: without its overload: "add", or "c10d::send" where it is not one of torch's own.
        takes_device: whether an argument is a device.
        is_new: whether it returns something that is not one of its arguments.
        is_random: whether it draws from a generator.
        is_per_element: whether it takes lists whose elements go together, one op for each.
    """

    def __init__(self, op: Any) -> None:
        schema = op._schema
        self.name: str = schema.name.removeprefix("aten::")
        self.takes_device = any("Device" in str(argument.type) for argument in schema.arguments)
        self.is_new = any(value.alias_info is None or not value.alias_info.is_write for value in schema.returns)
        self.is_random = torch.Tag.nondeterministic_seeded in op.tags
        self.is_per_element = "_foreach_" in self.name or self.name.startswith("_fused_")


def copied_to(tensor: torch.Tensor, device: torch.device, dtype: Any, memory_format: Any) -> torch.Tensor:
    """Return a copy on `device`, by an op in any case, though torch may see that the tensor is there already."""
    # Torch's own code leaves `pin_memory` out where it hands on the device of a tensor that it has.
    options = {} if memory_format is None else {"memory_format": memory_format}
    copy: torch.Tensor = torch.ops.aten._to_copy(tensor, dtype=dtype, device=device, pin_memory=False, **options)
    return copy


def rename_spare_device_type(name: str) -> None:
    """Give the name to the one device type that torch keeps for others to name.

    Raises:
        RuntimeError: it has another name.
    """
    if torch._C._get_privateuse1_backend_name() != name:
        torch.utils.rename_privateuse1_backend(name)


def spare_device_type() -> str:
    """Return the name of that device type."""
    name: str = torch._C._get_privateuse1_backend_name()
    return name


def add_device_module(name: str, module: Any) -> None:
    """Make `module` known as `torch.<name>`."""
    if getattr(torch, name, None) is not module:
        torch._register_device_module(name, module)


def generator_key(generator: torch.Generator) -> int:
    """Return what tells a generator from all others while it is there."""
    key: int = generator._cdata  # type: ignore[attr-defined]
    return key


NoFunctionModes: Any = torch._C.DisableTorchFunction
"""A context in which torch's functions do what they do by themselves; a default device is such a mode."""


def remember_functions() -> None:
    """Let torch note now which its own functions are, where it does so once, before others stand in for some of them.

    That is where the compiler is imported, and where it is first asked which functions make tensors.
    """
    from torch.utils._device import _device_constructors

    importlib.import_module("torch._dynamo")
    _device_constructors()


def forget_functions() -> None:
    """Let the compiler look its functions up again, now that none stands in for another any more."""
    from torch._dynamo.trace_rules import clear_lru_cache

    clear_lru_cache()


def let_scripts_call(instead: Callable[..., Any], original: Callable[..., Any]) -> None:
    """Let TorchScript take `instead` for one of torch's own functions, `original`, if that is one."""
    from torch.jit._builtins import _find_builtin, _register_builtin

    if (name := _find_builtin(original)) is not None:
        _register_builtin(instead, name)


WRAPPER = "_make_wrapper_subclass"
"""The static method of `Tensor` that makes a tensor which wraps others."""

GROUP_BY_DEVICE: tuple[Any, str] = (torch._C, "_group_tensors_by_device_and_dtype")
"""The function by which optimizers sort their tensors by device and dtype: where it is looked up, and its name."""

ACCELERATOR: tuple[Any, str] = (torch._C, "_get_accelerator")
"""The same of the function that gives torch's own code the device to use where it is told none."""

ACCELERATOR_CALLS: tuple[Any, str] = (torch._C, "_accelerator_")
"""Where `torch.accelerator` looks up its C++ functions, and what their names begin with."""


@contextlib.contextmanager
def ddp_as_it_was() -> Iterator[None]:
    """Leave the mark of the DDP whose forward runs, which torch keeps for all threads, as it was before.

    Threads that run forwards at once save and restore it in turns, and the last may restore another's.
    """
    ddp = torch.nn.parallel.DistributedDataParallel
    before = ddp._active_ddp_module
    try:
        yield
    finally:
        ddp._active_ddp_module = before
