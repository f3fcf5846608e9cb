from __future__ import annotations

import json
import math
from typing import Any

import pytest

from devices.__main__ import main
from devices.errors import ArgumentError, TargetNotFoundError
from devices.topology import Model, choices, training_step

LLAMA = Model(parameters=8e9, layers=32, hidden=4096, heads=32, kv_heads=8, sequence=8192)
ARGUMENTS = [
    *("--parameters", "8e9", "--layers", "32", "--hidden", "4096", "--heads", "32", "--kv-heads", "8"),
    *("--sequence", "8192"),
]


def test_of_each_target_and_batch_the_fastest_mesh_that_fits_is_kept() -> None:
    found = choices(LLAMA, ["p5.48xlarge", "trn2.48xlarge"], batches=(32, 64))
    assert len(found.found) == 4
    assert not found.refused
    kept = next(each.run for each in found.found if each.run.target == "p5.48xlarge" and each.run.batch == 64)
    assert kept.fits
    tried = [
        training_step(LLAMA, "p5.48xlarge", {axis: 8 // tp, "tp": tp}, 64, recompute=recompute)
        for axis in ("dp", "fsdp")
        for tp in (1, 2, 4, 8)
        for recompute in ("attention", "all")
    ]
    fastest = min(run.seconds.expected for run in tried if run.fits)
    assert kept.seconds.expected <= fastest


def test_those_that_fit_come_first_and_of_them_the_fastest() -> None:
    found = choices(
        LLAMA, ["p5.48xlarge"], meshes=[{"dp": 8}, {"fsdp": 8}, {"tp": 8}], batches=(64,), watts=700, price=10
    ).found
    assert [each.run.fits for each in found] == sorted((each.run.fits for each in found), reverse=True)
    fit = [each.run.tokens.expected for each in found if each.run.fits]
    assert len(fit) == 2
    assert fit == sorted(fit, reverse=True)
    assert found[0].wins == ("fastest", "cheapest", "least energy")
    # 16 bytes for each of 8e9 parameters are more than a GPU has.
    assert found[-1].run.mesh["dp"] == 8
    assert not found[-1].run.fits


def test_fewer_chips_may_be_asked_for_and_more_than_a_target_has() -> None:
    for chips in (4, 8, 16):
        [found] = choices(LLAMA, ["p5.48xlarge"], chips=chips).found
        assert found.run.ranks == math.prod(found.run.mesh.values()) == chips
    assert "12 ranks on p5.48xlarge" in choices(LLAMA, ["p5.48xlarge"], chips=12).refused["p5.48xlarge"]


def test_what_cannot_be_said_of_a_target_is_said_to_be_so_and_the_others_are_compared() -> None:
    model = Model(parameters=1e9, layers=16, hidden=2048, heads=16, sequence=1024, dtype="float4")
    found = choices(model, ["p5.48xlarge", "trainium3-ultraserver-gen2"], chips=8)
    assert "h100: figure fp4 is not known" in found.refused["p5.48xlarge, batch 64"]
    assert {each.run.target for each in found.found} == {"trainium3-ultraserver-gen2"}


def test_serving_is_compared_by_its_decoding() -> None:
    found = choices(LLAMA, ["p5.48xlarge"], task="serve", batches=(8, 64)).found
    assert len(found) == 2
    assert all(each.prefill is not None and each.run.fits for each in found)
    assert found[0].run.tokens.expected > found[1].run.tokens.expected


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ArgumentError, match="wanted to train or to serve, not to 'bake'"):
        choices(LLAMA, ["p5.48xlarge"], task="bake")
    with pytest.raises(TargetNotFoundError):
        choices(LLAMA, ["p5.48xlarg"])


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["plan", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, out, _ = plan(capsys, "train", "--targets", "p5.48xlarge,trn2.48xlarge", *ARGUMENTS)
    assert status == 0
    assert "fastest" in out
    assert "tokens/s" in out
    assert "not sure: the share of dense FLOPS is assumed" in out


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = plan(
        capsys, "serve", "--targets", "p5.48xlarge", "--mesh", "dp=2,tp=4", "--mesh", "tp=8", "--batch", "64",
        "--watts", "700", "--json", *ARGUMENTS,
    )  # fmt: skip
    assert status == 0
    data: dict[str, Any] = json.loads(out)
    assert [each["mesh"] for each in data["choices"]] in (
        [{"dp": 2, "tp": 4}, {"tp": 8}],
        [{"tp": 8}, {"dp": 2, "tp": 4}],
    )
    first = data["choices"][0]
    assert first["seconds"]["low"] < first["seconds"]["expected"] < first["seconds"]["high"]
    assert first["joules_per_million_tokens"]["expected"] == pytest.approx(
        first["seconds"]["expected"] * 8 * 700 / 64 * 1e6
    )


def test_the_command_says_by_its_status_that_nothing_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = plan(capsys, "train", "--targets", "p5.48xlarge", "--mesh", "dp=8", *ARGUMENTS)
    assert status == 1
    assert "does not fit" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--targets", "p5.48xlarg"], "did you mean 'p5.48xlarge'"),
        (["--targets", "p5.48xlarge", "--batch", "many"], "--batch is a number, or several with commas, not 'many'"),
    ],
)
def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    status, _, error = plan(capsys, "train", *arguments, *ARGUMENTS)
    assert status == 2
    assert said in error


def test_what_the_catalogue_knows_of_power_and_price_is_used_and_the_rest_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = choices(LLAMA, ["p5.48xlarge", "trn2.48xlarge"], meshes=[{"fsdp": 8}], batches=(64,)).found
    runs = {choice.run.target: choice.run for choice in found}
    step = runs["p5.48xlarge"]
    assert step.missing == ()
    assert step.joules is not None
    assert step.price is not None
    # Eight chips of 700 W, and 55.04 USD an hour for the eight.
    millions = 64 * LLAMA.sequence / 1e6
    assert step.joules.expected == pytest.approx(step.seconds.expected * 8 * 700 / millions)
    assert step.price.expected == pytest.approx(step.seconds.expected * 55.04 / 3600 / millions)
    other = runs["trn2.48xlarge"]
    assert (other.joules, other.price) == (None, None)
    assert [what.partition(":")[0] for what in other.missing] == ["power of trainium2", "price of trn2.48xlarge"]
    assert main(["plan", "train", "--targets", "trn2.48xlarge", "--mesh", "fsdp=8", *ARGUMENTS]) in (0, 1)
    assert "not known: power of trainium2: say `watts`" in " ".join(capsys.readouterr().out.split())
