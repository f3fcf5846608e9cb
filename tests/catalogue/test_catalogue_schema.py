from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from catalogue_copies import copy_of, replace

import devices_trainium4
from devices.catalogue import Catalogue
from devices.errors import CatalogueError

MEMORY = '[figures.memory]\nvalue = 103_079_215_104\nunit = "bytes"\nprinted = "96 GiB"\nsource = "sdk-trainium2"\n'
"""How trainium2.toml states the memory, up to the date."""

CORES = """\
[figures.cores]
value = 8
unit = "count"
source = "sdk-trainium2"
date = 2025-12-02
status = "documented"
"""

MEMBERS = """\
[figures.members]
value = 4
unit = "count"
source = "sdk-trn2-arch"
date = 2025-10-17
status = "documented"
"""

FP4 = '[figures.fp4]\nunknown = "the page of the chip states none"\n'

DAMAGE = {
    # What is missing.
    "no unit": (MEMORY, MEMORY.replace('unit = "bytes"\n', ""), "[figures.memory] unit: is missing"),
    "no source": (MEMORY, MEMORY.replace('source = "sdk-trainium2"\n', ""), "[figures.memory] source: is missing"),
    "no date": ("date = 2025-12-02\n", "", "[figures.cores] date: is missing"),
    "no status": ('status = "documented"\n', "", "[figures.cores] status: is missing"),
    "no value": ("value = 8\n", "", "[figures.cores] needs one of value, unknown and none, and has neither"),
    "a figure left out": (FP4 + "date = 2026-11-23\n", "", "[figures] fp4: is missing"),
    "a figure misspelt": ("[figures.cores]", "[figures.coers]", "[figures] coers: no such key; did you mean 'cores'?"),
    "no kind": ('kind = "chip"\n', "", "trainium2.toml: kind: is missing"),
    "no title": ('title = "AWS Trainium2"\n', "", "title: is missing"),
    "no software": ('software = "neuron"\n', "", "software: is missing"),
    # What nothing reads.
    "a key too many": (MEMORY, MEMORY + "colour = 1\n", "[figures.memory] colour: no such key; there are value, unit"),
    "a misspelt key": (MEMORY, MEMORY.replace("printed", "prinetd"), "prinetd: no such key; did you mean 'printed'?"),
    "a table too many": ("[figures.cores]", "[extra]\na = 1\n[figures.cores]", "extra: no such key"),
    "a limit too many": ("[limits.float8_max]", "[limits.max_groups]", "[limits] max_groups: no such key"),
    "a value for an unknown": (FP4, FP4 + "value = 1\n", "[figures.fp4] needs one of value, unknown and none, and has"),
    "a status for an unknown": (FP4, FP4 + 'status = "assumed"\n', "[figures.fp4] status: what is unknown has none"),
    "a unit for an unknown": (FP4, FP4 + 'unit = "flop/s"\n', "[figures.fp4] unit: no such key"),
    # What is of the wrong kind.
    "another unit": (MEMORY, MEMORY.replace('"bytes"', '"GiB"'), "[figures.memory] unit: is 'GiB' and must be 'bytes'"),
    "part of a byte": ("103_079_215_104", "103079215104.5", "[figures.memory] value: in bytes must be a whole number"),
    "less than nothing": ("value = 8\n", "value = -8\n", "[figures.cores] value: in count must be"),
    "nothing": ("value = 8\n", "value = 0\n", "[figures.cores] value: in count must be"),
    "true": ("value = 8\n", "value = true\n", "[figures.cores] value: in count must be"),
    "a text": ("value = 2.9e12", 'value = "2.9e12"', "[figures.memory_bandwidth] value: in bytes/s must be a number"),
    "no end": ("value = 2.9e12", "value = inf", "[figures.memory_bandwidth] value: in bytes/s must be a number"),
    "no number": ("value = 2.9e12", "value = nan", "[figures.memory_bandwidth] value: in bytes/s must be a number"),
    "not ascending": ("value = [1, 2]", "value = [2, 1]", "[figures.lnc] value: in counts must be a list"),
    "listed twice": ("value = [1, 2]", "value = [1, 1]", "[figures.lnc] value: in counts must be a list"),
    "an empty reason": (FP4, '[figures.fp4]\nunknown = " "\n', "[figures.fp4] unknown: must be a text"),
    "no table": ("[figures.cores]", "[figures]\nx = 1\n[figures.cores]", "[figures] x: no such key"),
    # Sources, dates and statuses.
    "another source": ("sdk-trainium2", "sdk-trainium9", "source: no source 'sdk-trainium9' in sources.toml; did you"),
    "a source as a number": ('source = "sdk-trainium2"', "source = 2", "source: no source 2 in sources.toml"),
    "a month 13": ("date = 2025-12-02", 'date = "2025-13"', "date: must be a date, or a year or a month"),
    "a date that is none": ("date = 2025-12-02", "date = 2025-13-02", "trainium2.toml: is no TOML"),
    "a day as a text": ("date = 2025-12-02", 'date = "2025-12-02"', "date: must be a date, or a year or a month"),
    "a time": ("date = 2025-12-02", "date = 2025-12-02T00:00:00", "date: must be a date, or a year or a month"),
    "a year as a number": ("date = 2025-12-02", "date = 2025", "date: must be a date, or a year or a month"),
    "another century": ("date = 2025-12-02", 'date = "1925"', "date: 1925 is not of this century"),
    "another status": (
        '"documented"',
        '"likely"',
        "status: must be one of measured, documented, inferred, announced, a",
    ),
    # Contradictions.
    "a misprint": ('printed = "96 GiB"', 'printed = "96 GB"', "printed: '96 GB' is 96000000000 bytes, and the value"),
    "words printed": ('printed = "96 GiB"', 'printed = "much"', "printed: must be a number and a unit, as '96 GiB'"),
    "printed in another unit": ('printed = "96 GiB"', 'printed = "96 TB/s"', "printed: '96 TB/s' is 96000000000000 b"),
    "others without why": ("why = ", "note = ", "[figures.collective_cores] why: goes with others"),
    "others alike": ("value = 20,", "value = 16,", "[figures.collective_cores] others: repeats the chosen value 16"),
    "others badly": ('value = 20, unit = "count"', "value = 20", "[figures.collective_cores.others] unit: is missing"),
    "a default that is not allowed": (
        "[figures.default_lnc]\nvalue = 2",
        "[figures.default_lnc]\nvalue = 4",
        "[figures.default_lnc] value: 4 is not one of lnc, 1, 2",
    ),
    "cores that do not divide": (
        "value = 8\n",
        "value = 7\n",
        "[figures.lnc] value: 1, 2 do not all divide the 7 cores",
    ),
    "cores that are not known": (
        CORES,
        '[figures.cores]\nunknown = "?"\ndate = 2025-12-02\n',
        "[figures.lnc] contradicts cores and default_lnc",
    ),
    "more one way than in all": (
        '[figures.link_bandwidth_one_way]\nvalue = 640e9\nunit = "bytes/s"\nprinted = "640 GB/s"',
        '[figures.link_bandwidth_one_way]\nvalue = 2e12\nunit = "bytes/s"',
        "[figures.link_bandwidth_one_way] value: 2000000000000.0 contradicts link_bandwidth",
    ),
    "a dtype ruled on twice": (
        'names = ["float8_e4m3fn"]',
        'names = ["float8_e4m3fn", "float64"]',
        "[limits.dtypes] names: neuron.toml rules on 'float64' already",
    ),
    # Rulings.
    "no such dtype": (
        '["float8_e4m3fn"]',
        '["float8_e4m3"]',
        "[limits.dtypes] names: no such name as 'float8_e4m3'; did",
    ),
    "no names": ('names = ["float8_e4m3fn"]\n', "", "[limits.dtypes] names: must be a list of names, not None"),
    "a ruling as a table": ("[[limits.dtypes]]", "[limits.dtypes]", "[limits.dtypes] must be an array of tables"),
    # References.
    "another kind": (
        'kind = "chip"',
        'kind = "chipp"',
        "kind: must be one of software, chip, machine, ultraserver, cluster, domain, not",
    ),
    "other software": (
        'software = "neuron"',
        'software = "neutron"',
        "software: no entry named 'neutron'; did you mean",
    ),
    "a chip as software": (
        'software = "neuron"',
        'software = "h100"',
        "software: 'h100' is a chip and must be a software",
    ),
    "an alias twice": ('title = "AWS', 'aliases = ["a", "a"]\ntitle = "AWS', "aliases: names something twice"),
    "no TOML": ("[figures.cores]", "[figures.cores", "trainium2.toml: is no TOML"),
    "a figure stated twice": ("[figures.cores]", "[figures.cores]\n[figures.cores]", "trainium2.toml: is no TOML"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_chip_is_an_error_that_names_file_table_and_key(tmp_path: Path, case: str) -> None:
    folder = copy_of(tmp_path)
    old, new, message = DAMAGE[case]
    replace(folder / "trainium2.toml", old, new)
    with pytest.raises(CatalogueError) as caught:
        Catalogue(folder).load("trainium2")
    assert message in str(caught.value)
    assert str(caught.value).startswith("trainium2.toml: ")


OTHERS = {
    "a verb left out": ("neuron.toml", 'names = ["send", "recv"]', 'names = ["send"]', "says nothing of recv"),
    "verbs left out": ("neuron.toml", "limits.verbs", "limits.words", "[limits] words: no such key; did you mean"),
    "an op ruled on twice": (
        "neuron.toml",
        '"avg", ',
        '"avg", "sum", ',
        "[limits.reductions] names: 'sum' is ruled on t",
    ),
    "an op left out": ("neuron.toml", '"avg", ', "", "[limits.reductions] names: says nothing of avg"),
    "a reduced dtype that tensors may not have": (
        "neuron.toml",
        'value = ["uint8", ',
        'value = ["float64", ',
        "[limits.reductions, sum] value: float64: tensors on trainium2 may not have that",
    ),
    "a moved dtype that tensors may not have": (
        "neuron.toml",
        "[limits.moved_dtypes]\n",
        '[limits.moved_dtypes]\nvalue = ["float64"]\nunit = "dtypes"\nsource = "nkipy"\nstatus = "assumed"\n#',
        "[limits.moved_dtypes] value: float64: tensors on trainium2 may not have that",
    ),
    "a torus of another size": (
        "trn2.48xlarge.toml",
        '"torus 4x4"',
        '"torus 4x5"',
        "contradicts members: there are 16",
    ),
    "no shape": ("trn2.48xlarge.toml", '"torus 4x4"', '"4x4"', "[figures.topology] value: in shape must be 'switch'"),
    "an interval upside down": (
        "trn2.48xlarge.toml",
        "[1e-6, 2e-6]",
        "[2e-6, 1e-6]",
        "value: in s must be a number ab",
    ),
    "a sum that is none": (
        "trainium2-ultraserver.toml",
        'value = 1600e9\nunit = "bytes/s"\nprinted = "12,800 Gbps"',
        'value = 800e9\nunit = "bytes/s"',
        "[figures.nic_bandwidth] value: 800000000000.0 contradicts 4 times the 400000000000.0 of trn2.48xlarge",
    ),
    "a number of parts that is not known": (
        "trainium2-ultraserver.toml",
        MEMBERS,
        '[figures.members]\nunknown = "?"\ndate = 2025-10-17\n',
        "[figures.members] must have a value",
    ),
    "made of nothing": ("trainium2-ultraserver.toml", '"trn2.48xlarge"', '"trn2"', "of: no entry named 'trn2'"),
    "made of a chip": (
        "trainium2-ultraserver.toml",
        '"trn2.48xlarge"',
        '"trainium2"',
        "is a chip and must be a machine",
    ),
    "limits of a machine": (
        "trn2.48xlarge.toml",
        "[figures.members]",
        "[limits]\n[figures.members]",
        "limits: no such k",
    ),
    "an empty source": ("sources.toml", "nkipy = ", 'empty = ""\nnkipy = ', "sources.toml: empty: must be a text"),
    "a source as a table": ("sources.toml", "nkipy = ", "empty = {}\nnkipy = ", "sources.toml: empty: must be a text"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_damaged_part_is_an_error_of_whoever_asks_for_the_whole(tmp_path: Path, case: str) -> None:
    folder = copy_of(tmp_path)
    file, old, new, message = OTHERS[case]
    replace(folder / file, old, new)
    with pytest.raises(CatalogueError) as caught:
        Catalogue(folder).load("trainium2-ultraserver")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_damaged_file_is_no_error_of_whoever_asks_for_another(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    replace(folder / "trainium2.toml", "unit", "units")
    assert Catalogue(folder).load("trainium3").name == "trainium3"


@pytest.mark.parametrize("name", ["Trn2.toml", "trn2 .toml", ".toml", "trn2..48.toml"])
def test_a_file_has_a_plain_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('kind = "chip"', encoding="utf-8")
    with pytest.raises(CatalogueError, match=r"the file's name must be lower-case letters"):
        Catalogue(tmp_path).names()


def test_a_chip_may_add_dtypes_to_a_reduce_op_and_not_one_that_the_software_lacks(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    replace(folder / "h100.toml", '["sum", "avg", "min", "max", "prod"]', '["sum", "band"]')
    with pytest.raises(CatalogueError, match=r"\[limits.reductions\] value: repeats or contradicts .* 'band'"):
        Catalogue(folder).load("h100")


def test_an_alias_belongs_to_one_entry(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    replace(folder / "p5.48xlarge.toml", '["p5.48xl"]', '["trn2.48xl"]')
    with pytest.raises(CatalogueError, match=r"'trn2\.48xl' is p5\.48xlarge already"):
        Catalogue(folder).load("trn2.48xl")


def test_a_second_folder_adds_entries_made_of_those_of_the_first(tmp_path: Path) -> None:
    folder, more = copy_of(tmp_path), tmp_path / "more"
    more.mkdir()
    (folder / "p5.48xlarge.toml").rename(more / "mine.toml")
    replace(more / "mine.toml", 'aliases = ["p5.48xl"]', "")
    replace(more / "mine.toml", '"nccl-issue-1264"', '"mine"')
    (more / "sources.toml").write_text('mine = "what I saw"\n', encoding="utf-8")
    target = Catalogue(folder, more).load("mine")
    assert (target.limits.ranks, target.figure("topology").source) == (8, "what I saw")
    assert target.figure("chip.memory").value == 80 * 10**9


@pytest.mark.parametrize("name", ["h100.toml", "sources.toml"])
def test_two_folders_state_nothing_twice(tmp_path: Path, name: str) -> None:
    folder, more = copy_of(tmp_path), tmp_path / "more"
    more.mkdir()
    (more / name).write_text('nkipy = "another"\n', encoding="utf-8")
    with pytest.raises(CatalogueError, match="of that name"):
        Catalogue(folder, more)


ENERGY = '[[claims]]\nof = "energy_efficiency"\nthan = "trainium2"\nvalue = 1.4\n'
CLAIMS = {
    "of what is no figure": (
        '"energy_efficiency"', '"energy_eficiency"', "[claims] of: no figure 'energy_eficiency'; did you mean"
    ),
    "than what is no target": ('than = "trainium2"', 'than = "trainium5"', "than: no target named 'trainium5'; did"),
    "than nothing": ('than = "trainium2"\n', "", "[claims] than: must be a text, not None"),
    "no number": ("value = 1.4\n", "", "[claims] value: is missing: a claim says how many times"),
    "no times": ("value = 1.4\n", "value = -1.4\n", "[claims, energy_efficiency] value: in times must be a number"),
    "twice": (ENERGY, ENERGY + 'unit = "times"\nsource = "nccl"\ndate = "2026"\nstatus = "announced"\n' + ENERGY,
              "[claims] 'energy_efficiency than trainium2' is stated twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLAIMS)
def test_a_damaged_claim_is_an_error(tmp_path: Path, case: str) -> None:
    folder = copy_of(tmp_path)
    old, new, message = CLAIMS[case]
    replace(folder / "trainium3.toml", old, new)
    with pytest.raises(CatalogueError) as caught:
        Catalogue(folder).load("trainium3")
    assert str(caught.value).startswith("trainium3.toml: ")
    assert message in str(caught.value)


TRAINIUM4 = Path(devices_trainium4.__file__).parent / "targets"
DOMAIN = "trainium4-nvlink-fusion.toml"
SPECULATIVE = {
    "made of what is speculative, and not said so": (DOMAIN, "speculative = true\n", "", "assumptions"),
    "no true or false": (DOMAIN, "speculative = true", 'speculative = "yes"', "speculative: must be true or false"),
    "assumed what is no choice": (DOMAIN, 'assumed = "one"', 'assumed = "three"', "'three' is not one of choices, on"),
    "one choice": (DOMAIN, 'choices = ["one", "two"]', 'choices = ["one"]', "choices: must be two or more"),
    "choices as a text": (DOMAIN, 'choices = ["one", "two"]', 'choices = "one"', "choices: must be a list of texts"),
    "an assumption without a ground": (DOMAIN, "because = ", "reason = ", "[assumptions] reason: no such key"),
    "an assumption twice": (DOMAIN, 'name = "atomics"', 'name = "coherence"', "'coherence' is stated twice"),
    "beside a machine": (DOMAIN, 'beside = "rubin"', 'beside = "p5.48xlarge"', "is a machine and must be a chip"),
    "beside nothing": (DOMAIN, 'beside = "rubin"\n', "", "beside: is missing"),
}


@pytest.mark.parametrize("case", SPECULATIVE)
def test_a_damaged_speculative_entry_is_an_error(tmp_path: Path, case: str) -> None:
    more = tmp_path / "more"
    shutil.copytree(TRAINIUM4, more)
    file, old, new, message = SPECULATIVE[case]
    replace(more / file, old, new)
    with pytest.raises(CatalogueError) as caught:
        Catalogue(copy_of(tmp_path), more).load("trainium4-nvlink-fusion")
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_what_is_made_of_a_speculative_chip_is_speculative(tmp_path: Path) -> None:
    folder, more = copy_of(tmp_path), tmp_path / "more"
    shutil.copytree(TRAINIUM4, more)
    replace(folder / "p5.48xlarge.toml", 'of = "h100"', 'of = "trainium4"')
    with pytest.raises(CatalogueError, match=r"'trainium4' is speculative, and so must be what is made of it"):
        Catalogue(folder, more).load("p5.48xlarge")


def test_more_chips_than_a_cluster_has_room_for_are_a_contradiction(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    replace(folder / "trainium3-ultracluster.toml", "value = 6944", "value = 6945")
    with pytest.raises(CatalogueError, match=r"6945 contradicts chips: that is 1000080 chips, and 1000000 is the most"):
        Catalogue(folder).load("trainium3-ultracluster")


def test_a_file_of_before_there_was_a_figure_may_leave_it_out(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    text = (folder / "p5.48xlarge.toml").read_text(encoding="utf-8")
    (folder / "p5.48xlarge.toml").write_text(text[: text.index("[figures.network]")], encoding="utf-8")
    network = Catalogue(folder).load("p5.48xlarge").figure("network")
    assert (network.value, network.absent, network.reason) == (None, "unknown", "its file leaves it out")
