from __future__ import annotations

import math
import time
from typing import Any

import pytest

from devices.catalogue import load
from devices.errors import ArgumentError, TargetNotFoundError
from devices.topology import Model, predict, serving, training_step

# 12 layers x (4 x 1024^2 of attention + 8 x 1024^2 of the MLP) parameters.
PARAMETERS = 12 * 12 * 1024**2
SMALL = Model(parameters=PARAMETERS, layers=12, hidden=1024, heads=16, sequence=2048)
LLAMA = Model(parameters=8e9, layers=32, hidden=4096, heads=32, kv_heads=8, sequence=8192)
H100_FLOPS, H100_BYTES = 989e12, 3.35e12


def test_one_gpu_computes_a_step_at_the_share_of_its_flops_that_is_assumed() -> None:
    found = training_step(SMALL, "p5.48xlarge", {}, batch=4, recompute="none")
    # A token: 6 flops for each parameter, and of attention 4 h for each layer and token seen, in three passes.
    each = 6 * PARAMETERS + 3 * 4 * 12 * 1024 * (2048 / 2)
    assert found.parts["compute"] == pytest.approx(4 * 2048 * each / (0.5 * H100_FLOPS))
    assert found.parts["collectives"] == found.parts["bubble"] == 0
    assert found.seconds.expected == pytest.approx(sum(found.parts.values()))
    assert found.tokens.expected == pytest.approx(4 * 2048 / found.seconds.expected)
    assert found.tokens.low < found.tokens.expected < found.tokens.high


def test_a_rank_holds_sixteen_bytes_for_each_parameter_and_what_a_layer_keeps() -> None:
    found = training_step(SMALL, "p5.48xlarge", {}, batch=4)
    assert found.memory == pytest.approx(16 * PARAMETERS + 34 * 1024 * 2048 * 12)
    assert found.capacity == pytest.approx(0.92 * 80e9)
    assert found.fits


def test_tp_and_pp_split_the_weights_fsdp_all_that_is_kept_of_them_and_dp_nothing() -> None:
    def held(**mesh: int) -> float:
        found = training_step(SMALL, "p5.48xlarge", mesh, batch=16, recompute="all")
        return found.memory / PARAMETERS

    activations = 2 * 1024 * 2048 * 12 / PARAMETERS
    assert held(dp=4) == pytest.approx(16 + activations)
    assert held(tp=4) == pytest.approx(4 + activations / 4)
    # Four micro-batches are under way in a pipeline of four.
    assert held(pp=4) == pytest.approx(4 + activations)
    # And two layers in 16 bits are at hand, whole.
    assert held(fsdp=4) == pytest.approx(4 + activations + 2 * 2 / 12)


def test_what_is_computed_again_is_a_third_more_and_kept_less() -> None:
    whole, again = (training_step(SMALL, "p5.48xlarge", {}, batch=4, recompute=what) for what in ("none", "all"))
    assert again.parts["compute"] / whole.parts["compute"] == pytest.approx(4 / 3)
    assert again.memory < whole.memory


def test_a_tensor_parallel_step_waits_for_four_all_reduces_of_each_layer() -> None:
    found = training_step(SMALL, "p5.48xlarge", {"tp": 8}, batch=3)
    one = predict("all_reduce", 2048 * 1024 * 2, "p5.48xlarge", 8)
    assert found.collectives["tp"].seconds == one.seconds
    assert found.parts["collectives"] == pytest.approx(4 * 12 * 3 * one.seconds.expected)


def test_a_pipeline_is_empty_for_all_stages_but_one_of_a_micro_batch() -> None:
    found = training_step(SMALL, "p5.48xlarge", {"pp": 4}, batch=8)
    busy = found.parts["compute"] + found.parts["memory"] + found.parts["collectives"]
    assert found.parts["bubble"] == pytest.approx(busy * 3 / 8)


def test_the_last_axis_is_on_the_links_and_the_first_on_the_network() -> None:
    found = training_step(LLAMA, "p5.48xlarge", {"dp": 2, "tp": 8}, batch=4)
    gradients = LLAMA.parameters / 8 * 2 / 32
    # Two GPUs of two machines have a NIC of 50 GB/s each; no algorithm is faster than that.
    assert found.collectives["dp"].seconds.expected > gradients / 50e9
    assert found.collectives["tp"].algorithm == "NVLS"


def test_energy_and_price_are_those_of_the_chips_that_are_said_and_else_are_said_to_be_missing() -> None:
    without = training_step(SMALL, "p5.48xlarge", {"dp": 8}, batch=8)
    assert (without.joules is None) == any("power of h100" in what for what in without.missing)
    assert (without.price is None) == any("price of p5.48xlarge" in what for what in without.missing)
    found = training_step(SMALL, "p5.48xlarge", {"dp": 8}, batch=8, watts=700, price=3.6)
    millions = 8 * 2048 / 1e6
    assert found.joules is not None
    assert found.price is not None
    assert found.joules.expected == pytest.approx(found.seconds.expected * 8 * 700 / millions)
    assert found.price.expected == pytest.approx(found.seconds.expected * 8 * 3.6 / 3600 / millions)
    assert found.missing == ()


def test_a_core_of_a_neuron_chip_has_its_share_of_it() -> None:
    found = training_step(SMALL, "trn2.48xlarge", {}, batch=4, recompute="none", watts=400)
    each = 6 * PARAMETERS + 3 * 4 * 12 * 1024 * (2048 / 2)
    assert found.parts["compute"] == pytest.approx(4 * 2048 * each / (0.5 * 667e12 / 4))
    assert found.capacity == pytest.approx(0.92 * 24 * 2**30)
    assert found.joules is not None
    assert found.joules.expected == pytest.approx(found.seconds.expected * 100 / (4 * 2048 / 1e6))


def test_decoding_takes_the_reading_of_weights_and_cache() -> None:
    found = serving(LLAMA, "p5.48xlarge", {}, batch=8)
    # 8 heads of 128 wide for keys and as many for values, in 32 layers of two bytes.
    cache = 8192 * 2 * 8 * 128 * 32 * 2
    assert found.decode.parts["memory"] == pytest.approx((8e9 * 2 + 8 * cache) / (0.75 * H100_BYTES))
    assert found.decode.tokens.expected == pytest.approx(8 / found.decode.seconds.expected)
    assert found.decode.memory == pytest.approx(16e9 + 8 * cache + 4 * 8 * 4096 * 2)
    assert found.fits
    assert not serving(LLAMA, "p5.48xlarge", {}, batch=80).fits


def test_prefill_takes_the_computing_of_the_prompts() -> None:
    found = serving(LLAMA, "p5.48xlarge", {"dp": 2}, batch=4, prompt=1000)
    each = 2 * 8e9 + 4 * 32 * 4096 * 500
    assert found.prefill.parts["compute"] == pytest.approx(2 * 1000 * each / (0.5 * H100_FLOPS))
    assert found.prefill.tokens.expected == pytest.approx(4 * 1000 / found.prefill.seconds.expected)


def test_a_million_trainium3_chips_are_arithmetic() -> None:
    model = Model(parameters=2e12, layers=128, hidden=24576, heads=192, sequence=8192)
    begin = time.perf_counter()
    # 6,944 UltraServers of 144 chips of 4 ranks: 999,936 chips.
    found = training_step(
        model, "trainium3-ultraserver-gen2", {"pp": 16, "dp": 434, "fsdp": 9, "tp": 64}, batch=434 * 9 * 64
    )
    assert time.perf_counter() - begin < 10
    assert found.ranks / 4 == 999_936
    assert math.isfinite(found.seconds.high)
    assert any("no measurement of trainium3" in doubt for doubt in found.doubts)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mesh": {"fsd": 2}}, "no time is known of an axis 'fsd'; did you mean 'fsdp'"),
        ({"mesh": {"pp": 5}}, "pp=5 does not divide the 12 layers"),
        ({"mesh": {"tp": 32}}, "tp=32 does not divide the 16 heads"),
        ({"mesh": {"ep": 2}}, "the model has none"),
        ({"mesh": {"dp": 0}}, "at least 1, got 0"),
        ({"mesh": {"dp": 3}}, "a batch of 4 is not made of micro-batches of 1"),
        ({"micro_batch": 3}, "micro-batches of 3"),
        ({"recompute": "some"}, "`recompute` is one of none, attention, all"),
        ({"watts": 0}, "`watts` of a chip is a number above 0"),
        ({"price": "3"}, "`price` of a chip is a number above 0, got '3'"),
        ({"batch": 0}, "`batch` is a whole number"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(asked: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {"mesh": {}, "batch": 4, **asked}
    with pytest.raises(ArgumentError, match=message):
        training_step(SMALL, "p5.48xlarge", **whole)


def test_a_model_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ArgumentError, match="12 heads do not divide hidden=1024"):
        Model(parameters=1e9, layers=2, hidden=1024, heads=12, sequence=1)
    with pytest.raises(ArgumentError, match=r"computes in one of .*; did you mean 'bfloat16'"):
        Model(parameters=1e9, layers=2, hidden=1024, heads=16, sequence=1, dtype="bfloat1")
    with pytest.raises(ArgumentError, match="`layers` of a model is a number above 0, got 0"):
        Model(parameters=1e9, layers=0, hidden=1024, heads=16, sequence=1)
    with pytest.raises(TargetNotFoundError):
        training_step(SMALL, "p6", {}, batch=1)
    with pytest.raises(ArgumentError, match="fsdp spreads what training keeps"):
        serving(SMALL, "p5.48xlarge", {"fsdp": 2}, batch=2)
    with pytest.raises(ArgumentError, match="a prompt has 1 to 2048 tokens"):
        serving(SMALL, "p5.48xlarge", {}, batch=2, prompt=4096)


def test_a_chip_that_does_not_compute_in_a_dtype_is_an_error_that_names_the_figure() -> None:
    from devices.errors import TopologyError

    model = Model(parameters=1e9, layers=2, hidden=1024, heads=16, sequence=1024, dtype="float4")
    with pytest.raises(TopologyError, match="h100: figure fp4 is not known"):
        training_step(model, "p5.48xlarge", {}, batch=1)


def test_the_price_of_a_machine_is_that_of_its_chips() -> None:
    hour = load("p5.48xlarge").figure("price").value
    assert isinstance(hour, float)
    found = training_step(SMALL, "p5.48xlarge", {"dp": 4}, batch=8)
    assert found.price is not None
    # Half a machine for the seconds of a step of 8 x 2048 tokens.
    assert found.price.expected == pytest.approx(found.seconds.expected * hour / 2 / 3600 / (8 * 2048 / 1e6))
