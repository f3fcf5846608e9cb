"""Tensors that carry a device that is not here: what a program gets to see, and that it computes what a CPU does."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor import randn as dtensor_randn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import devices
import devices.testing
from devices import World
from devices.errors import ArgumentError, UnsupportedError
from devices.testing._device_tensors import device_tensors

Tensor = torch.Tensor
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*returned a view tensor:UserWarning"),
    # Torch's own second derivatives are scripts.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning"),
]


@pytest.fixture(params=["neuron", "cuda"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and torch.backends.cuda.is_built():
        pytest.skip("needs a torch that is built without CUDA")
    name: str = request.param
    return name


@pytest.fixture
def device(kind: str) -> Iterator[torch.device]:
    """The second of four devices."""
    with device_tensors(kind, 1, count=4) as device:
        yield device


@pytest.fixture(autouse=True)
def one_thread_per_op() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return numbers on the CPU, whatever else goes on."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device=CPU)


# What a tensor says.


def test_a_tensor_says_that_it_is_on_its_device(kind: str, device: torch.device) -> None:
    x = torch.ones(2, device=kind)
    assert x.device == device == torch.device(kind, 1)
    assert x.device.type == kind
    assert x.device.index == x.get_device() == 1
    assert not x.is_cpu
    assert x.is_cuda is (kind == "cuda")
    assert x.type() == f"torch.{kind}.FloatTensor"
    assert repr(x) == f"tensor([1., 1.], device='{kind}:1')"


def test_a_tensor_that_was_made_without_a_device_is_on_the_cpu(device: torch.device) -> None:
    for x in (torch.ones(2), torch.tensor([1.0]), torch.rand(3), torch.from_numpy(numbers(2).numpy()), torch.eye(2)):
        assert x.device == CPU
        assert x.is_cpu


MAKERS: list[Callable[[Any], Tensor]] = [
    lambda to: torch.zeros(2, device=to),
    lambda to: torch.empty(2, device=to),
    lambda to: torch.full((2,), 3.0, device=to),
    lambda to: torch.arange(3, device=to),
    lambda to: torch.randn(2, device=to),
    lambda to: torch.randperm(3, device=to),
    lambda to: torch.tensor([1.0, 2.0], device=to),
    lambda to: torch.tensor(1, device=to),
    lambda to: torch.as_tensor([1.0], device=to),
    lambda to: torch.asarray([1.0], device=to),
    lambda to: torch.tensor([1.0], device=to, requires_grad=True),
    lambda to: torch.ones(2).to(to),
    lambda to: torch.ones(2).new_zeros(3, device=to),
    lambda to: torch.zeros_like(torch.ones(2), device=to),
    lambda to: nn.Linear(2, 2, device=to).weight,
    lambda to: nn.Linear(2, 2).to(to).weight,
    lambda to: nn.Linear(2, 2, device="meta").to_empty(device=to).weight,
    lambda to: torch.ones(2).copy_(torch.ones(2)).to(device=to, dtype=torch.float64),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("index", [None, 0, 3])
def test_a_tensor_is_made_on_any_device(
    kind: str, device: torch.device, make: Callable[[Any], Tensor], index: int | None
) -> None:
    name = kind if index is None else f"{kind}:{index}"
    expected = torch.device(kind, 1 if index is None else index)
    assert make(name).device == expected
    assert make(torch.device(name)).device == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda to: torch.zeros(2, device=to),
        lambda to: torch.randn(2, device=to),
        lambda to: torch.tensor([1.0], device=to),
        lambda to: torch.ones(2).to(to),
        lambda to: nn.Linear(2, 2).to(to).weight,
        lambda to: nn.Linear(2, 2, device=to).weight,
    ],
)
def test_a_number_is_a_device(kind: str, device: torch.device, make: Callable[[Any], Tensor]) -> None:
    assert make(3).device == torch.device(kind, 3)


def test_a_default_device_holds(kind: str, device: torch.device) -> None:
    with torch.device(f"{kind}:2"):
        made = [torch.zeros(2), torch.tensor([1.0]), nn.Linear(2, 2).weight, nn.BatchNorm1d(2).num_batches_tracked]
    assert {x.device for x in made} == {torch.device(kind, 2)}


@pytest.mark.parametrize(
    "like",
    [
        lambda x: x.clone(),
        lambda x: torch.zeros_like(x),
        lambda x: x.new_ones(3),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.new([1.0]),
        lambda x: torch.tensor(x.detach().tolist(), device=x.device),
        lambda x: torch.as_tensor(x),
        lambda x: x.detach(),
        lambda x: x.data,
        lambda x: x[0],
        lambda x: x[:, [0, 1]],
        lambda x: x[torch.tensor([0])],
        lambda x: x[x > 0],
        lambda x: x.T,
        lambda x: x.view(-1),
        lambda x: x.unbind()[1],
        lambda x: x.split(1)[0],
        lambda x: x.sort().indices,
        lambda x: x.nonzero(),
        lambda x: x.double(),
        lambda x: x.sum(),
        lambda x: x > 0,
        lambda x: torch.cat([x, x]),
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: F.one_hot(x.argmax(1)),
        lambda x: torch.fft.fft(x),
        lambda x: torch.linalg.svd(x).S,
        lambda x: torch.vmap(torch.sin)(x),
        lambda x: torch.func.grad(lambda y: y.sin().sum())(x),
        lambda x: torch.distributions.Normal(x, 1.0).sample(),
        lambda x: copy.deepcopy(x),
        lambda x: pickle.loads(pickle.dumps(x)),  # noqa: S301 - of our own making
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse().to_dense(),
        lambda x: torch.ones(1).type_as(x),
        lambda x: torch.ones(1, dtype=torch.float64).to(x),
        lambda x: torch.func.hessian(lambda y: (y**3).sum())(x[0]),
    ],
)
def test_what_is_made_of_a_tensor_is_where_it_is(
    kind: str, device: torch.device, like: Callable[[Tensor], Tensor]
) -> None:
    for index in (1, 3):
        x = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]], device=f"{kind}:{index}")
        made = like(x)
        assert made.device == torch.device(kind, index)
        assert not made.is_cpu


def test_numpy_is_refused(device: torch.device) -> None:
    x = torch.ones(2, device=device)
    for ask in (lambda: x.numpy(), lambda: memoryview(x.__array__())):
        with pytest.raises(TypeError, match=f"can't convert {device} device type tensor to numpy"):
            ask()
    assert x.cpu().numpy().tolist() == x.numpy(force=True).tolist() == x.tolist() == [1.0, 1.0]
    assert (x.sum().item(), float(x[0]), bool(x[0] > 0)) == (2.0, 1.0, True)


def test_a_number_of_a_device_that_is_not_there_is_an_error(kind: str, device: torch.device) -> None:
    for ask in (lambda: torch.ones(1, device=f"{kind}:4"), lambda: torch.ones(1).to(4)):
        with pytest.raises(RuntimeError, match="invalid device ordinal 4"):
            ask()


# Tensors that are not together.

TOGETHER: list[Callable[[Tensor, Tensor], object]] = [
    lambda x, y: x + y,
    lambda x, y: y + x,
    lambda x, y: x.add_(y),
    lambda x, y: y.add_(x),
    lambda x, y: x @ y,
    lambda x, y: torch.cat([x, y]),
    lambda x, y: torch.stack([y, x]),
    lambda x, y: torch.where(x > 0, x, y),
    lambda x, y: torch.add(x, x, out=y),
    lambda x, y: F.linear(x, y),
    lambda x, y: F.linear(x, x, y[0]),
    lambda x, y: F.mse_loss(x, y),
    lambda x, y: F.cross_entropy(x, y.argmax(1)),
    lambda x, y: F.embedding(y.long(), x),
    lambda x, y: F.layer_norm(x, (2,), y[0]),
    lambda x, y: F.conv1d(x[None], y[None]),
    lambda x, y: F.scaled_dot_product_attention(x, x, y),
    lambda x, y: y[x.long()],
    lambda x, y: x.index_put_((x.long(),), y),
    lambda x, y: x.masked_fill_(y > 0, 0.0),
    lambda x, y: torch.equal(x, y),
    lambda x, y: torch._foreach_add([x], [y]),
    lambda x, y: nn.BatchNorm1d(2).to(x.device)(y),
    lambda x, y: nn.LSTM(2, 2).to(x.device)(y),
]


@pytest.mark.parametrize("op", TOGETHER)
def test_tensors_on_two_devices_are_refused(
    kind: str, device: torch.device, op: Callable[[Tensor, Tensor], object]
) -> None:
    x = torch.ones(2, 2, device=device)
    for y in (torch.ones(2, 2), torch.ones(2, 2, device=f"{kind}:2")):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, but found at least two"):
            op(x, y)
        op(x, y.to(x.device))


def test_scalars_on_the_cpu_go_with_all(device: torch.device) -> None:
    x, two = torch.ones(2, device=device), torch.tensor(2.0)
    for y in (x + two, two * x, x.add(two), x.clamp(max=two), torch.where(x > 0, two, x)):
        assert y.device == device
    assert torch.equal((x * two).cpu(), torch.tensor([2.0, 2.0]))


def test_indices_may_be_on_the_cpu(device: torch.device) -> None:
    x = torch.arange(6.0, device=device).view(2, 3)
    x[torch.tensor([1]), torch.tensor([2])] = torch.tensor(9.0)
    assert torch.equal(x[torch.tensor([1])].cpu(), torch.tensor([[3.0, 4.0, 9.0]]))
    with pytest.raises(RuntimeError, match="same device"):
        x[torch.tensor([0, 1])] = torch.zeros(2, 3)


def test_copies_go_anywhere(kind: str, device: torch.device) -> None:
    x, y, z = torch.ones(2), torch.zeros(2, device=device), torch.zeros(2, device=f"{kind}:3")
    assert y.copy_(x).device == device
    assert z.copy_(y).device == torch.device(kind, 3)
    assert x.zero_().copy_(z).device == CPU
    z[1:] = x[:1] + 1
    assert (x.tolist(), y.tolist(), z.tolist()) == ([1, 1], [1, 1], [1, 2])


def test_a_tensor_that_is_there_is_not_copied(kind: str, device: torch.device) -> None:
    x, y = torch.ones(2), torch.ones(2, device=device)
    assert x.cpu() is x.to("cpu") is x
    assert y.to(kind) is y.to(device) is y.to(1) is y.to(y) is y
    assert y.to(device, copy=True) is not y
    assert y.cpu() is not y
    assert y.cpu().device == y.to("cpu").device == y.to(x).device == CPU
    assert y.to(f"{kind}:2").to("cpu").add_(1).tolist() == [2, 2]
    assert y.tolist() == [1, 1]
    assert y.to(torch.float64).device == y.to("cpu", torch.float64).to(device, torch.float16).device == device


def test_torchs_own_temporaries_are_where_they_are_needed(device: torch.device) -> None:
    """Torch's C++ makes tensors on the CPU, as it takes it, for the gradients of these."""
    x = torch.ones(3, 4, device=device, requires_grad=True)
    y = (
        x.trace()
        + x[1:, [0, 2]].sum()
        + x.cumsum(0)[2].prod()
        + x.index_select(0, torch.tensor([0], device=device)).sum()
    )
    y.backward()
    z = torch.ones(3, 4, requires_grad=True)
    (z.trace() + z[1:, [0, 2]].sum() + z.cumsum(0)[2].prod() + z.index_select(0, torch.tensor([0])).sum()).backward()
    assert x.grad is not None
    assert x.grad.device == device
    assert_close(x.grad.cpu(), z.grad)


# Gradients.


def test_a_gradient_goes_back_to_where_its_tensor_is(kind: str, device: torch.device) -> None:
    here, there = torch.ones(2, requires_grad=True), torch.ones(2, device=device, requires_grad=True)
    seen: list[torch.device] = []
    there.register_hook(lambda gradient: seen.append(gradient.device))
    (here.to(f"{kind}:3") * there.to(f"{kind}:3") * 2).sum().cpu().backward()
    assert here.grad is not None
    assert there.grad is not None
    assert (here.grad.device, there.grad.device, seen) == (CPU, device, [device])
    assert here.grad.tolist() == there.grad.tolist() == [2, 2]
    target = torch.zeros(2)
    target.copy_(there * 3)
    target.sum().backward()
    assert there.grad.device == device
    assert there.grad.tolist() == [5, 5]


def test_gradients_of_gradients(device: torch.device) -> None:
    x = torch.ones(3, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: (y.sin() * y).cumsum(0).cpu(), x)
    assert torch.autograd.gradgradcheck(lambda y: (y.sin() * y).cpu() ** 2, x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Nothing used the second result, so its gradient is zeros of torch's own making.
        assert gradients[1].device == x.device
        return (gradients[0] * 2 + gradients[1] * 3) * torch.ones(2, device=x.device)


def test_a_function_of_ones_own(device: torch.device) -> None:
    x = torch.ones(2, device=device, requires_grad=True)
    Doubled.apply(x)[0].sum().backward()
    assert x.grad is not None
    assert (x.grad.device, x.grad.tolist()) == (device, [2, 2])


def test_an_op_of_ones_own_is_on_the_cpu_inside(device: torch.device) -> None:
    @torch.library.custom_op("test_device_tensors::halved", mutates_args=())
    def halved(x: Tensor) -> Tensor:
        assert x.is_cpu
        return torch.from_numpy(x.numpy() / 2) + torch.zeros(x.shape, device=x.device)

    y = halved(torch.ones(2, device=device))
    assert (y.device, y.tolist()) == (device, [0.5, 0.5])


# Programs, whose numbers are those that they give on the CPU.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.out(self.rnn(x)[0].mean(1))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "AdamW, each alone": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=False),
    "AdamW, together": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "SGD, fused": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1),
}


def trained(to: torch.device, make: Callable[[Any], torch.optim.Optimizer]) -> tuple[list[float], dict[str, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    model.to(to)
    optimizer = make(model.parameters())
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(numbers(2, 1, 4, 4, seed=step).to(to)), torch.tensor([0, 2], device=to))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert {value.device for value in (*model.parameters(), *model.buffers())} == {to}
    assert {value.grad.device for value in model.parameters() if value.grad is not None} == {to}
    assert {
        value.device
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim()
    } <= {to}
    return losses, {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("index", [0, 3])
def test_a_model_is_trained_as_on_the_cpu(kind: str, make: Callable[[Any], torch.optim.Optimizer], index: int) -> None:
    # The two ways of an optimizer round differently, and devices other than the CPU get the one for all at once.
    expected = trained(CPU, make)
    with device_tensors(kind, 1, count=4):
        assert_close(trained(torch.device(kind, index), make), expected)


def test_a_model_lies_on_two_devices(kind: str, device: torch.device) -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    alone = copy.deepcopy(nn.Sequential(first, second))
    first.to(f"{kind}:0")
    second.to(f"{kind}:2")
    ours = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=0.1)
    plain = torch.optim.AdamW(alone.parameters(), lr=0.1, foreach=True)
    x = numbers(5, 3)
    for _ in range(3):
        second(first(x.to(f"{kind}:0")).to(f"{kind}:2")).square().sum().backward()
        alone(x).square().sum().backward()
        norm = nn.utils.clip_grad_norm_([*first.parameters(), *second.parameters()], 1.0)
        assert_close(norm.cpu(), nn.utils.clip_grad_norm_(alone.parameters(), 1.0))
        ours.step()
        plain.step()
        ours.zero_grad()
        plain.zero_grad()
    assert_close([first.weight.cpu(), second.weight.cpu()], [alone[0].weight, alone[1].weight])
    with pytest.raises(RuntimeError, match="same device"):
        second(first(x.to(f"{kind}:0")))


def test_embeddings_with_sparse_gradients(device: torch.device) -> None:
    def stepped(to: torch.device) -> Tensor:
        table = nn.Embedding.from_pretrained(numbers(4, 3), freeze=False, sparse=True).to(to)
        optimizer = torch.optim.SparseAdam(table.parameters())
        table(torch.tensor([1, 1, 3], device=to)).square().sum().backward()
        assert table.weight.grad is not None
        assert table.weight.grad.device == to
        optimizer.step()
        return table.weight.detach().cpu()

    assert_close(stepped(device), stepped(CPU))


def test_packed_sequences(device: torch.device) -> None:
    rnn = nn.GRU(3, 4)
    expected, _ = rnn(nn.utils.rnn.pack_padded_sequence(numbers(5, 2, 3), torch.tensor([5, 3])))
    packed = nn.utils.rnn.pack_padded_sequence(numbers(5, 2, 3).to(device), torch.tensor([5, 3]))
    found, _ = rnn.to(device)(packed)
    assert (found.data.device, found.batch_sizes.device) == (device, CPU)
    padded, _ = nn.utils.rnn.pad_packed_sequence(found)
    assert padded.device == device
    assert_close(padded.cpu(), nn.utils.rnn.pad_packed_sequence(expected)[0])


def test_a_loaders_batches_are_on_the_cpu(device: torch.device) -> None:
    loader = DataLoader(TensorDataset(numbers(4, 3)), batch_size=2, pin_memory=True)
    assert [batch.device for (batch,) in loader] == [CPU, CPU]
    assert loader.pin_memory
    with pytest.raises(RuntimeError, match="cannot pin"):
        torch.ones(2, device=device).pin_memory()


# Saved and loaded.


def test_a_saved_tensor_comes_back_to_where_it_was_or_is_sent(kind: str, device: torch.device) -> None:
    model = nn.Linear(3, 2).to(device)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "cpu": torch.ones(1)}, file)

    def loaded(where: Any) -> tuple[torch.device, torch.device]:
        file.seek(0)
        state = torch.load(file, map_location=where)
        assert_close(state["model"]["weight"].cpu(), model.weight.detach().cpu())
        return state["model"]["weight"].device, state["cpu"].device

    assert loaded(None) == (device, CPU)
    assert loaded("cpu") == (CPU, CPU)
    assert loaded(f"{kind}:2") == loaded(torch.device(kind, 2)) == (torch.device(kind, 2),) * 2
    assert loaded({f"{kind}:1": f"{kind}:0"}) == (torch.device(kind, 0), CPU)
    other = nn.Linear(3, 2).to(f"{kind}:3")
    file.seek(0)
    other.load_state_dict(torch.load(file, map_location="cpu")["model"])
    assert other.weight.device == torch.device(kind, 3)
    assert_close(other.weight.cpu(), model.weight.cpu())


def test_what_was_saved_on_a_device_is_loaded_where_there_is_none(kind: str) -> None:
    file = io.BytesIO()
    with device_tensors(kind, 0):
        torch.save(torch.ones(2, device=kind), file)
    file.seek(0)
    with pytest.raises(RuntimeError, match=r"(?i)attempting to deserialize object on a"):
        torch.load(file)
    file.seek(0)
    assert torch.load(file, map_location="cpu").tolist() == [1, 1]


def test_a_copy_of_a_model_is_where_it_is(kind: str, device: torch.device) -> None:
    model = nn.Linear(3, 2).to(f"{kind}:2")
    other = copy.deepcopy(model)
    other.weight.data.add_(1)
    assert other.weight.device == torch.device(kind, 2)
    assert_close(other.weight.cpu(), model.weight.cpu() + 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, device=f"{kind}:2")).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()


# What the runtime says.


def test_the_runtime_answers(kind: str, device: torch.device) -> None:
    module = torch.get_device_module(kind)
    assert module is getattr(torch, kind)
    assert module.is_available()
    assert module.is_initialized()
    assert (module.device_count(), module.current_device()) == (4, 1)
    module.set_device(2)
    assert torch.ones(1, device=kind).device == torch.device(kind, 2)
    module.set_device(device)
    with module.device(3):
        assert module.current_device() == 3
        assert torch.ones(1).to(kind).device == torch.device(kind, 3)
    assert module.current_device() == 1
    module.synchronize()
    stream, start, end = module.Stream(), module.Event(enable_timing=True), module.Event(enable_timing=True)
    with module.stream(stream):
        assert module.current_stream() is stream
        start.record()
        stream.wait_stream(module.current_stream())
        end.record()
    assert start.elapsed_time(end) >= 0
    assert kind in module.get_device_name()
    assert module.get_device_properties().name == module.get_device_name()


def test_a_device_has_the_memory_that_it_is_said_to_have(kind: str) -> None:
    with device_tensors(kind, 0, memory=1 << 30) as to:
        module = torch.get_device_module(kind)
        before, total = module.mem_get_info()
        held = torch.ones(1000, device=to)
        assert module.mem_get_info() == torch.accelerator.get_memory_info() == (before - held.nbytes, total)
        assert module.get_device_properties().total_memory == total == 1 << 30


def test_markers_of_a_profiler_do_nothing() -> None:
    if torch.backends.cuda.is_built():
        pytest.skip("needs a torch that is built without CUDA")
    with device_tensors("cuda", 0), torch.cuda.nvtx.range("a part"):
        torch.cuda.nvtx.mark("a place")


def test_torchs_accelerator_is_the_device(kind: str, device: torch.device) -> None:
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device(kind)
    assert (torch.accelerator.device_count(), torch.accelerator.current_device_index()) == (4, 1)
    torch.accelerator.set_device_index(3)
    assert torch.get_device_module(kind).current_device() == 3
    torch.accelerator.synchronize()
    torch.accelerator.current_stream().synchronize()


def test_memory_is_counted(kind: str, device: torch.device) -> None:
    module = torch.get_device_module(kind)
    before = module.memory_allocated()
    x = torch.ones(1000, device=device)
    y = x.view(10, 100)
    assert module.memory_allocated() == torch.accelerator.memory_allocated() == before + 4000
    z = x + 1
    assert module.memory_allocated() == before + 8000
    assert module.memory_allocated(2) == 0
    z.untyped_storage().resize_(0)
    assert module.memory_allocated() == before + 4000
    del x, y, z
    torch.ones(1000)
    assert module.memory_allocated() == before
    assert module.max_memory_allocated() >= before + 8000
    module.reset_peak_memory_stats()
    assert module.max_memory_allocated() == before


def test_a_device_draws_numbers_of_its_own(kind: str, device: torch.device) -> None:
    torch.manual_seed(5)
    there, here = torch.randn(4, device=device), torch.randn(4)
    torch.manual_seed(5)
    torch.testing.assert_close(torch.randn(4), here, rtol=0, atol=0)
    assert torch.equal(torch.randn(4, device=device), there)
    module = torch.get_device_module(kind)
    state = module.get_rng_state()
    first, second = (F.dropout(torch.ones(64, device=device)) for _ in range(2))
    assert not torch.equal(first, second)
    module.set_rng_state(state)
    assert torch.equal(F.dropout(torch.ones(64, device=device)), first)
    generator = torch.Generator(kind).manual_seed(3)
    assert isinstance(generator, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    assert generator.device == device
    drawn = torch.randn(3, device=device, generator=generator)
    assert_close(drawn.cpu(), torch.randn(3, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(RuntimeError, match=f"Expected a '{kind}' device type for generator but found 'cpu'"):
        torch.randn(3, device=device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match=f"Expected a 'cpu' device type for generator but found '{kind}'"):
        torch.randn(3, generator=generator)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_dropout_is_the_same(device: torch.device, use_reentrant: bool) -> None:
    x = torch.ones(200, device=device, requires_grad=True)
    y = checkpoint(lambda z: F.dropout(z * z), x, use_reentrant=use_reentrant)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(y != 0, x.grad != 0)


def test_autocast_is_the_cpus(kind: str, device: torch.device) -> None:
    x, y = torch.ones(2, 2, device=device), torch.ones(2, 2)
    with torch.autocast(kind, dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with torch.autocast(kind, enabled=False):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == (y @ y).dtype == torch.float32
    assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_compiled_function_runs_as_it_is(device: torch.device) -> None:
    compiled = torch.compile(lambda x: (x @ x).relu() * 2, backend="aot_eager")
    assert compiled(torch.ones(2, 2, device=device)).device == device


# Ranks.


def on_device(world: World, program: Callable[..., Any], kind: str | None, *args: Any) -> Any:
    with device_tensors(kind, world.rank) if kind else contextlib.nullcontext(CPU) as to:
        return program(world, to, *args)


def same(program: Callable[..., Any], kind: str, *args: Any, ranks: int = 4, **how: Any) -> None:
    """Hold that thread ranks get from `program` on devices what they get from it on the CPU."""
    expected = devices.testing.run(on_device, program, None, *args, ranks=ranks)
    found = devices.testing.run(on_device, program, kind, *args, ranks=ranks, **how)
    assert_close(found, expected, rtol=0, atol=0)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def steps(model: nn.Module, x: Tensor) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def verbs(world: World, to: torch.device) -> list[Tensor]:
    size, rank = world.size, world.rank
    x = torch.arange(1.0, size + 1, device=to) * (rank + 1)
    needs_gradient = x.clone().requires_grad_()
    found = [
        devices.all_reduce(x),
        devices.all_gather(x),
        devices.reduce_scatter(x),
        devices.all_to_all(x),
        devices.broadcast(x, src=1),
        devices.scatter(x if rank == 0 else None),
        devices.permute(x, pairs=[(i, (i + 1) % size) for i in range(size)]),
        devices.all_reduce(x, async_op=True).result(),
        *devices.all_gather([x, x.long()], async_op=True).result(),
        devices.all_reduce(x, out=torch.empty_like(x)),
        torch.autograd.grad(devices.all_gather(needs_gradient).square().sum(), needs_gradient)[0],
    ]
    y = x.clone()
    dist.all_reduce(y)
    parts = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(parts, x)
    received = torch.zeros_like(x)
    requests = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, x, (rank + 1) % size),
            dist.P2POp(dist.irecv, received, (rank - 1) % size),
        ]
    )
    for request in requests:
        request.wait()
    dist.barrier()
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, rank)
    assert objects == list(range(size))
    found += [y, *parts, received]
    assert {tensor.device for tensor in found} == {to}
    assert devices.all_reduce(torch.ones(2)).device == CPU
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("how", [{}, {"seed": 1}, {"parallel": True}], ids=str)
def test_verbs(kind: str, how: dict[str, Any]) -> None:
    same(verbs, kind, **how)


def data_parallel(world: World, to: torch.device, options: dict[str, Any]) -> tuple[list[float], list[Tensor]]:
    model = nn.parallel.DistributedDataParallel(small().to(to), **options)
    losses = steps(model, numbers(2, 4, seed=world.rank).to(to))
    assert {parameter.device for parameter in model.parameters()} == {to}
    return losses, [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("options", [{}, {"static_graph": True}, {"gradient_as_bucket_view": True}], ids=str)
def test_distributed_data_parallel(kind: str, options: dict[str, Any]) -> None:
    same(data_parallel, kind, options)


class Branches(nn.Module):
    """A model of which a rank uses one part or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.parts[which](x)  # type: ignore[no-any-return]


def branches(world: World, to: torch.device) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Branches().to(to), find_unused_parameters=True)
    for step in range(2):
        model(numbers(2, 4, seed=world.rank).to(to), (world.rank + step) % 2 if step else 0).sum().backward()
    return [parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None]


def test_parameters_that_a_rank_does_not_use(kind: str) -> None:
    same(branches, kind)


def fully_sharded(world: World, to: torch.device, options: dict[str, Any]) -> tuple[list[float], list[Tensor]]:
    model = small().to(to)
    mesh = init_device_mesh(to.type, (world.size,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh, **options)
    losses = steps(model, numbers(2, 4, seed=world.rank).to(to))
    assert {parameter.device for parameter in model.parameters()} == {to}
    return losses, [parameter.full_tensor().detach().cpu() for parameter in model.parameters()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [{}, {"reshard_after_forward": False}, {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}],
    ids=["plain", "kept", "bfloat16"],
)
def test_fully_sharded(kind: str, options: dict[str, Any]) -> None:
    same(fully_sharded, kind, options)


def distributed_tensors(world: World, to: torch.device) -> list[Tensor]:
    mesh = init_device_mesh(to.type, (2, 2), mesh_dim_names=("dp", "tp"))
    weight = distribute_tensor(numbers(8, 8).to(to), mesh, [Replicate(), Shard(1)]).requires_grad_()
    x = distribute_tensor(numbers(8, 8, seed=1).to(to), mesh, [Shard(0), Replicate()])
    y = (x @ weight).relu()
    y.sum().backward()
    moved = y.redistribute(placements=[Replicate(), Replicate()])
    gradient = weight.grad
    assert gradient is not None
    assert {part.device for part in (weight, gradient, y, y.full_tensor(), moved.to_local())} == {to}
    if to != CPU:
        with pytest.raises(RuntimeError, match="same device"):
            y.to_local() + torch.ones(4, 4)
        assert not y.is_cpu
    placed = devices.place(numbers(8, 8).to(to), mesh, tp=devices.Shard(0))
    return [part.cpu() for part in (y.full_tensor(), gradient.full_tensor(), moved.to_local(), placed.to_local())]  # type: ignore[attr-defined]


def test_distributed_tensors(kind: str) -> None:
    same(distributed_tensors, kind)


def test_a_distributed_tensors_shards_are_drawn_apart(kind: str) -> None:
    def drawn(world: World) -> tuple[Tensor, Tensor, Tensor]:
        with device_tensors(kind, world.rank):
            mesh = init_device_mesh(kind, (world.size,))
            torch.manual_seed(7)
            shards = dtensor_randn(world.size, 3, device_mesh=mesh, placements=[Shard(0)])
            whole = dtensor_randn(3, device_mesh=mesh, placements=[Replicate()])
            return shards.full_tensor().cpu(), whole.to_local().cpu(), torch.randn(3, device=kind).cpu()

    first, *others = devices.testing.run(drawn, ranks=3)
    assert len({tuple(row.tolist()) for row in first[0]}) == 3
    for other in others:
        assert_close(other, first, rtol=0, atol=0)


def test_a_worlds_device_and_mesh_are_the_ranks_own(kind: str) -> None:
    def seen(world: World) -> tuple[torch.device, str, torch.device]:
        with device_tensors(kind, world.rank):
            return world.device, world.mesh({"dp": -1}).device_type, torch.ones(1).to(world.device).device

    found = devices.testing.run(seen, ranks=3)
    assert found == [(torch.device(kind, rank), kind, torch.device(kind, rank)) for rank in range(3)]


def test_a_world_of_processes_carries_the_tensors(kind: str) -> None:
    with devices.init(backend="cpu"), device_tensors(kind, 0) as to:
        assert devices.all_reduce(torch.ones(2, device=to)).device == to


@pytest.mark.slow
def test_many_ranks_have_each_a_device(kind: str) -> None:
    def trained_alone(world: World) -> list[float]:
        with device_tensors(kind, world.rank) as to:
            assert torch.get_device_module(kind).device_count() == 48
            model = small().to(to)
            return steps(model, numbers(2, 4, seed=world.rank).to(to))

    found = devices.testing.run(trained_alone, ranks=48)
    for rank in (0, 1, 47):
        assert found[rank] == steps(small(), numbers(2, 4, seed=rank))


def test_ranks_meet_a_targets_limits_as_well() -> None:
    def product(world: World) -> Tensor:
        with device_tensors("neuron", world.rank) as to:
            return devices.all_reduce(torch.ones(2, device=to), op="prod")

    with pytest.raises(UnsupportedError, match="refuses"), devices.testing.emulate("trainium2"):
        devices.testing.run(product, ranks=2)


# Outside.

WATCHED = (torch, torch.Tensor, torch.cuda, torch.accelerator, torch.UntypedStorage, nn.Module, DataLoader, World)


def test_torch_is_what_it_was_afterwards(kind: str) -> None:
    with device_tensors(kind, 0):
        pass
    before = [dict(vars(owner)) for owner in WATCHED]
    with device_tensors(kind, 1, count=2), contextlib.suppress(RuntimeError):
        kept = torch.ones(2, device=kind)
        torch.manual_seed(3)
        drawn = torch.randn(2)
        kept + drawn
    for owner, names in zip(WATCHED, before, strict=True):
        assert {name for name in vars(owner).keys() | names if vars(owner).get(name) is not names.get(name)} == set()
    assert kept.device == CPU
    assert (kept + torch.ones(2)).numpy().tolist() == [2, 2]
    torch.manual_seed(3)
    assert torch.equal(torch.randn(2), drawn)
    assert not torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() is None
    assert not torch.get_device_module(kind).is_available()
    assert torch.get_device_module(kind).device_count() == 0
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device=kind)
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(model.parameters()).step()
    compiled = torch.compile(lambda x: x * torch.tensor(2.0) + torch.zeros(2), backend="aot_eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [2, 2]


def test_other_threads_see_a_cpu(kind: str, device: torch.device) -> None:
    x = torch.ones(2, device=device)
    seen: list[Any] = []

    def look() -> None:
        y = x + torch.ones(2)
        seen.extend([x.device, y.device, y.numpy().tolist(), torch.accelerator.is_available()])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [CPU, CPU, [2, 2], False]
    assert x.device == device


def test_an_error_leaves_nothing_behind(kind: str) -> None:
    with pytest.raises(KeyError), device_tensors(kind, 0):
        raise KeyError("of the program's")
    assert torch.ones(1).device == CPU
    with device_tensors(kind, 0) as device:
        assert torch.ones(1, device=kind).device == device


def test_what_cannot_be_emulated_is_said() -> None:
    for name in ("cpu", "xpu", "mps"):
        with pytest.raises(UnsupportedError, match="is here already"), device_tensors(name, 0):
            pass
    with (
        device_tensors("neuron", 0),
        pytest.raises(ArgumentError, match="leave that one first"),
        device_tensors("cuda", 0),
    ):
        pass
    with pytest.raises(UnsupportedError, match="spare device type is 'neuron'"), device_tensors("another", 0):
        pass
    with pytest.raises(ArgumentError, match="indices go from 0 to 1"), device_tensors("neuron", 2, count=2):
        pass
