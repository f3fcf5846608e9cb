from __future__ import annotations

import json
import pkgutil
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest
import torch
from on_cpu import PROGRAMS

import devices
from devices.errors import ArgumentError
from devices.testing import _portability_names as names
from devices.testing._portability import Finding, as_data, find


def expected(path: Path) -> Counter[tuple[int, str]]:
    """Return what the comments in a program expect on their lines: `# expect: kind, kind`."""
    with tokenize.open(path) as file:
        comments = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    return Counter(
        (comment.start[0], kind)
        for comment in comments
        if comment.string.startswith("# expect: ")
        for kind in comment.string.removeprefix("# expect: ").split(", ")
    )


def found_in(folder: Path, source: str) -> list[Finding]:
    path = folder / "program.py"
    path.write_text(source, encoding="utf-8")
    return list(find(path))


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_found_in_a_program_is_what_its_comments_expect(path: Path) -> None:
    assert len(expected(path)) > 8
    assert Counter((finding.line, finding.kind) for finding in find(path)) == expected(path)


def test_there_are_five_programs() -> None:
    assert len(list(PROGRAMS.glob("*.py"))) == 5


FOUND = {
    "import torch\ntorch.cuda.synchronize()": [(2, "torch.cuda.synchronize()", "device-module")],
    "import torch as t\nt.cuda.manual_seed_all(3)": [(2, "t.cuda.manual_seed_all(3)", "device-module")],
    "import torch\ntorch.cuda.memory.memory_allocated(0)": [
        (2, "torch.cuda.memory.memory_allocated(0)", "device-module")
    ],
    "import torch.cuda as tc\ntc.empty_cache()": [
        (1, "import torch.cuda", "device-module"),
        (2, "tc.empty_cache()", "device-module"),
    ],
    "from torch import cuda\nwith cuda.stream(cuda.Stream()): pass": [
        (1, "from torch import cuda", "device-module"),
        (2, "cuda.stream(cuda.Stream())", "device-module"),
        (2, "cuda.Stream()", "device-module"),
    ],
    "from torch.cuda import amp\nwith amp.autocast(): pass": [
        (1, "from torch.cuda import amp", "device-module"),
        (2, "amp.autocast()", "device-module"),
    ],
    "from torch.cuda.amp import autocast as cast\nf = cast": [
        (1, "from torch.cuda.amp import autocast", "device-module"),
        (2, "cast", "device-module"),
    ],
    "from torch.cuda import *": [(1, "from torch.cuda import *", "device-module")],
    "def f():\n    import torch\n    def g():\n        torch.cuda.init()": [(4, "torch.cuda.init()", "device-module")],
    "try:\n    import torch\nexcept ImportError:\n    import torch\ntorch.cuda.init()": [
        (5, "torch.cuda.init()", "device-module")
    ],
    "import torch\nmodule = torch.cuda\nmodule.synchronize()": [
        (2, "torch.cuda", "device-module"),
        (3, "module.synchronize()", "device-module"),
    ],
    "import torch\ncount = torch.cuda.device_count\ncount()": [(2, "torch.cuda.device_count", "device-module")],
    "import torch\ndef f(s: torch.cuda.Stream): pass": [(2, "torch.cuda.Stream", "device-module")],
    "import torch\ntry: pass\nexcept torch.cuda.OutOfMemoryError: pass": [
        (3, "torch.cuda.OutOfMemoryError", "device-module")
    ],
    "import torch\nx = torch.cuda.get_device_properties(0).total_memory": [
        (2, "torch.cuda.get_device_properties(0)", "device-module")
    ],
    "import torch\nx = torch.xpu.device_count()": [(2, "torch.xpu.device_count()", "device-module")],
    "import torch\nx = torch.version.cuda": [(2, "torch.version.cuda", "device-module")],
    "x = m.cuda()": [(1, ".cuda()", "device-method")],
    "x = (m\n  .train()\n  .cuda(0, non_blocking=True))": [(3, ".cuda(0, non_blocking=True)", "device-method")],
    "x = [m.cuda() for m in f()]": [(1, ".cuda()", "device-method")],
    "import torch\nx = map(torch.Tensor.cuda, y)": [(2, "torch.Tensor.cuda", "device-method")],
    "if x.is_cuda: pass": [(1, ".is_cuda", "device-method")],
    'x.to("cuda")': [(1, '"cuda"', "device-string")],
    "x.to('cuda:1', dtype)": [(1, "'cuda:1'", "device-string")],
    'x.to(f"cuda:{rank}")': [(1, 'f"cuda:{rank}"', "device-string")],
    'x.to("cuda:" + str(rank))': [(1, '"cuda:" + str(rank)', "device-string")],
    'x.to("cuda:%d" % rank)': [(1, '"cuda:%d" % rank', "device-string")],
    'x.to("cuda:{}".format(rank))': [(1, '"cuda:{}".format(rank)', "device-string")],
    'x.to("cuda" if ok else "cpu")': [(1, '"cuda"', "device-string")],
    'make(3, device="cuda:0")': [(1, '"cuda:0"', "device-string")],
    'import torch\ntorch.load(f, map_location="cuda")': [(2, '"cuda"', "device-string")],
    'import torch\ntorch.load(f, "cuda")': [(2, '"cuda"', "device-string")],
    'import torch\ntorch.device("cuda", 0)': [(2, 'torch.device("cuda", 0)', "device-string")],
    'import torch\ntorch.device("cuda" if ok else "cpu")': [
        (2, 'torch.device("cuda" if ok else "cpu")', "device-string")
    ],
    'import torch\nwhere = "cuda"\ntorch.device(where)': [(2, '"cuda"', "device-string")],
    'where = "cuda"\ndef f(x):\n    return x.to(where)': [(1, '"cuda"', "device-string")],
    'def f(x):\n    for where in ("cpu", "cuda:0"):\n        x.to(where)': [(2, '"cuda:0"', "device-string")],
    'a, b = "nccl", "cuda"\nx.to(b)': [(1, '"cuda"', "device-string")],
    'from torch.distributed.device_mesh import init_device_mesh as mesh\nmesh("cuda", (2,))': [
        (2, '"cuda"', "device-string")
    ],
    'import torch\nwith torch.autocast("cuda"): pass': [(2, '"cuda"', "device-string")],
    'import torch\ntorch.set_default_tensor_type("torch.cuda.HalfTensor")': [
        (2, '"torch.cuda.HalfTensor"', "device-string")
    ],
    'device = "cuda"': [(1, '"cuda"', "device-string")],
    'self.device: str = "cuda"': [(1, '"cuda"', "device-string")],
    'if (device := "cuda"): pass': [(1, '"cuda"', "device-string")],
    'def f(x, device="cuda", *, map_location="cuda:0"): pass': [
        (1, '"cuda"', "device-string"),
        (1, '"cuda:0"', "device-string"),
    ],
    'def pick_device():\n    return "cuda" if ok else "cpu"': [(2, '"cuda"', "device-string")],
    'def put(x, device): pass\nput(1, "cuda")': [(2, '"cuda"', "device-string")],
    'class Net:\n    def __init__(self, device): pass\nNet("cuda")': [(3, '"cuda"', "device-string")],
    'config = {"device": "cuda"}': [(1, '"cuda"', "device-string")],
    'config["device"] = "cuda"': [(1, '"cuda"', "device-string")],
    'where = config.get("device", "cuda")': [(1, '"cuda"', "device-string")],
    'setattr(args, "device", "cuda")': [(1, '"cuda"', "device-string")],
    'async def pick_device():\n    return "cuda"': [(2, '"cuda"', "device-string")],
    'device = field(default="cuda")': [(1, '"cuda"', "device-string")],
    'parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")': [
        (1, '"cuda"', "device-string"),
        (1, '"cuda"', "device-string"),
    ],
    'if x.device.type == "cuda": pass': [(1, '"cuda"', "device-string")],
    'if str(device).startswith("cuda"): pass': [(1, '"cuda"', "device-string")],
    'import torch\ntorch.ones(3, device="xla:1")': [(2, '"xla:1"', "device-string")],
    'import torch.distributed as dist\ndist.init_process_group("nccl")': [(2, '"nccl"', "backend")],
    'import torch.distributed as dist\ndist.init_process_group(backend="cpu:gloo,cuda:nccl")': [
        (2, '"cpu:gloo,cuda:nccl"', "backend")
    ],
    'import torch.distributed as dist\ndist.new_group([0], backend="gloo")': [(2, '"gloo"', "backend")],
    'from torch.distributed import init_process_group as start\nstart("NCCL")': [(2, '"NCCL"', "backend")],
    "import torch.distributed as dist\ndist.init_process_group(dist.Backend.NCCL)": [
        (2, "dist.Backend.NCCL", "backend")
    ],
    "import torch.distributed as dist\nif dist.is_nccl_available(): pass": [(2, "dist.is_nccl_available()", "backend")],
    'import torch.distributed as dist\nif dist.get_backend() == "nccl": pass': [(2, '"nccl"', "backend")],
    "from torch.distributed import ProcessGroupNCCL\no = ProcessGroupNCCL.Options()": [
        (1, "from torch.distributed import ProcessGroupNCCL", "backend"),
        (2, "ProcessGroupNCCL.Options()", "backend"),
    ],
    'WORDS = "nccl"\nimport torch.distributed as dist\ndist.init_process_group(WORDS)': [(1, '"nccl"', "backend")],
    'import os\nkind = os.environ.get("DIST_BACKEND", "nccl")': [(2, '"nccl"', "backend")],
    "from torch.nn.parallel import DistributedDataParallel as DDP\nDDP(m, device_ids=[0], output_device=0)": [
        (2, "device_ids=[0]", "device-ids"),
        (2, "output_device=0", "device-ids"),
    ],
    "import torch\ntorch.nn.parallel.DistributedDataParallel(m, device_ids=[\n  0])": [
        (2, "device_ids=[0]", "device-ids")
    ],
    "import torch.distributed as dist\ndist.barrier(device_ids=[0])": [(2, "device_ids=[0]", "device-ids")],
    "import torch.distributed as dist\ndist.init_process_group(device_id=d)": [(2, "device_id=d", "device-ids")],
    "import torch\ntorch.backends.cudnn.benchmark = True": [(2, "torch.backends.cudnn.benchmark", "torch-backends")],
    "from torch.backends import cudnn\ncudnn.deterministic = True": [
        (1, "from torch.backends import cudnn", "torch-backends"),
        (2, "cudnn.deterministic", "torch-backends"),
    ],
    "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True": [
        (2, "torch.backends.cuda.matmul.allow_tf32", "torch-backends")
    ],
    'import os\nos.environ["CUDA_VISIBLE_DEVICES"] = "0"': [(2, '"CUDA_VISIBLE_DEVICES"', "environment")],
    'import os\nif "NCCL_DEBUG" in os.environ: pass': [(2, '"NCCL_DEBUG"', "environment")],
    'import os\nx = os.getenv("NCCL_SOCKET_IFNAME")': [(2, '"NCCL_SOCKET_IFNAME"', "environment")],
    'import os\nos.environ.update(NCCL_DEBUG="INFO")': [(2, 'NCCL_DEBUG="INFO"', "environment")],
    'import os\nenv = {**os.environ, "TORCH_NCCL_BLOCKING_WAIT": "1"}': [
        (2, '"TORCH_NCCL_BLOCKING_WAIT"', "environment")
    ],
    'import os\nKEY = "NCCL_DEBUG"\nos.environ[KEY] = "INFO"': [(2, '"NCCL_DEBUG"', "environment")],
    "import torch_xla.core.xla_model as xm\nd = xm.xla_device()\nxm.mark_step()": [
        (1, "import torch_xla.core.xla_model", "vendor-package"),
        (2, "xm.xla_device()", "vendor-package"),
        (3, "xm.mark_step()", "vendor-package"),
    ],
    "from torch_xla.core import xla_model as xm\nxm.optimizer_step(o)": [
        (1, "from torch_xla.core import xla_model", "vendor-package"),
        (2, "xm.optimizer_step(o)", "vendor-package"),
    ],
    "import torch_neuronx": [(1, "import torch_neuronx", "vendor-package")],
}


@pytest.mark.parametrize("source", FOUND)
def test_what_binds_a_program_to_a_vendor_is_found(tmp_path: Path, source: str) -> None:
    found = [(finding.line, finding.code, finding.kind) for finding in found_in(tmp_path, source)]
    assert sorted(found) == sorted(FOUND[source])


NOT_FOUND = [
    '"""torch.cuda, "nccl", .cuda() and CUDA_VISIBLE_DEVICES"""  # torch.cuda.synchronize()',
    'def f():\n    "cuda"\n    return 1',
    'print("cuda", "nccl", "cuda:0")',
    'raise RuntimeError("no cuda device; nccl needs one")',
    'device = "needs cuda"',
    'print("device", "cuda")',
    'if cell.type == "neuron": pass',
    'help = f"run on cuda:{rank}"\nparser.add_argument("--device", help="cuda or nccl")',
    'counts = {"cuda": 1, "nccl": 2}\ncounts["cuda"] += 1',
    'if word == "cuda" or "cuda" in words: pass',
    'word = "cuda"',
    'word = "cuda"\nword = "cpu"\nx.to(word)',
    'def f(word):\n    global other\n    other = "cuda"\nother = "cpu"\nx.to(other)',
    'word = "cuda"\ndef f(x, word):\n    return x.to(word)',
    "cuda = args.cuda and not args.no_cuda\nargs.cuda = cuda",
    "class Net:\n    cuda = True\n    def cuda_graph(self): pass",
    "def cuda(x): pass\ncuda(1)",
    "from mine import cuda\ncuda.synchronize()",
    "import mine\nmine.torch.cuda.synchronize()",
    "def f(torch):\n    torch.cuda.synchronize()",
    "import torch\ntorch = None\ntorch.cuda.synchronize()",
    "class A:\n    import torch\n    def f(self):\n        torch.cuda.synchronize()",
    "torch.cuda.synchronize()",
    "import torch\ntorch.cudagraphs.x()\ntorch.accelerator.synchronize()\ntorch.cpu.synchronize()",
    'import torch\nx.to("cpu")\ntorch.device("cpu")\ntorch.ones(3, device="meta")',
    "import torch.utils.data as data\ndata.DataLoader(d, pin_memory=True)\nx.pin_memory()",
    'import torch.distributed as dist\ndist.init_process_group("devices")\ndist.init_process_group()',
    'import torch\ntorch.compile(m, backend="inductor")',
    'import os\nos.environ["MASTER_ADDR"] = os.environ.get("GLOO_SOCKET_IFNAME", "cuda")',
    "mine(m, device_ids=[0])",
    'x = "NCCL_DEBUG"',
    "import torch\nfrom torch.nn.parallel import DistributedDataParallel as DDP\nDDP(m)",
]


@pytest.mark.parametrize("source", NOT_FOUND)
def test_what_only_looks_so_is_not_found(tmp_path: Path, source: str) -> None:
    assert found_in(tmp_path, source) == []


def test_the_column_counts_characters_and_the_code_starts_there(tmp_path: Path) -> None:
    source = 'import torch\nname = "größe"; é = f"ü {name} {torch.cuda.memory_allocated()}"; y = x.cuda()\n'
    found = found_in(tmp_path, source)
    assert [finding.code for finding in found] == ["torch.cuda.memory_allocated()", ".cuda()"]
    line = source.split("\n")[1]
    assert all(line.startswith(finding.code, finding.column - 1) for finding in found)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_file_is_read_in_the_encoding_that_it_names(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "program.py"
    path.write_bytes(f'# coding: {encoding.removesuffix("-sig")}\r\né = x.to("cuda")\r\n'.encode(encoding))
    [finding] = find(path)
    assert (finding.line, finding.column, finding.code) == (2, 10, '"cuda"')


def test_the_modules_of_the_programs_own_folder_are_read_as_well(tmp_path: Path) -> None:
    sources = {
        "train.py": "import torch\nimport layers.linear\nfrom settings import PLACE, engine\nfrom os import path\n"
        "x.to(PLACE)\nengine.synchronize()\nlayers.linear.torch.cuda.init()\nhelp.cuda(1)\nimport help",
        "settings.py": 'from torch import cuda as engine\nimport train\nPLACE = "cuda"\nOTHER = "cuda"',
        "help.py": "def cuda(x): pass",
        "layers/__init__.py": "from . import norm",
        "layers/linear.py": "import torch\nfrom .deep.er import *\nfrom .. import above",
        "layers/norm.py": "y.cuda()",
        "layers/deep/er.py": 'import torch\ntorch.device("cuda")',
        "unused.py": "this is not Python",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    found = [
        (Path(each.path).relative_to(tmp_path).as_posix(), each.line, each.code) for each in find(tmp_path / "train.py")
    ]
    assert found == [
        ("layers/deep/er.py", 2, 'torch.device("cuda")'),
        ("layers/norm.py", 1, ".cuda()"),
        ("settings.py", 1, "from torch import cuda"),
        ("settings.py", 3, '"cuda"'),
        ("train.py", 6, "engine.synchronize()"),
        ("train.py", 7, "layers.linear.torch.cuda.init()"),
    ]


def test_the_program_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("raise SystemExit('imported')")
    assert found_in(tmp_path, "import beside\nraise SystemExit('run')\nx.cuda()") != []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"x = 1\ny = = 2\n", r"program\.py:2:5: this is no source that Python 3\.\d+ can read: invalid syntax"),
        (b"x = '\0'\n", r"program\.py"),
        (b"x = '\xff'\n", r"program\.py"),
        (b"# coding: no-such-encoding\n", r"program\.py.*no-such-encoding"),
        (b"(" * 1000, r"program\.py"),
        (b"x = " + b"-" * 100_000 + b"1\n", r"program\.py"),
    ],
)
def test_a_file_that_is_not_python_is_an_error_that_says_where(tmp_path: Path, source: bytes, said: str) -> None:
    (tmp_path / "program.py").write_bytes(source)
    with pytest.raises(ArgumentError, match=said):
        find(tmp_path / "program.py")


def test_a_module_beside_the_program_that_is_not_python_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def")
    with pytest.raises(ArgumentError, match=r"beside\.py:1"):
        found_in(tmp_path, "import beside")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"gone\.py cannot be read: No such file"):
        find(tmp_path / "gone.py")


def test_findings_are_sorted_and_are_plain_data_for_json() -> None:
    found = find(PROGRAMS / "pipeline_1f1b.py")
    assert list(found) == sorted(found)
    data = json.loads(json.dumps(as_data(found)))
    assert [Finding(**each) for each in data] == list(found)
    assert set(data[0]) == {"path", "line", "column", "code", "kind", "replacement"}


@pytest.mark.parametrize(
    ("code", "replacement"),
    [
        ("torch.cuda.is_available()", "torch.accelerator.is_available"),
        ("torch.cuda.device_count()", "torch.accelerator.device_count"),
        ("torch.cuda.set_device(0)", "nothing to write: devices.init() sets this rank's device"),
        ("torch.cuda.current_device()", "world.device"),
        ("torch.cuda.synchronize()", "torch.get_device_module(world.device).synchronize"),
        ("torch.cuda.current_stream()", "torch.get_device_module(world.device).current_stream"),
        ("torch.cuda.manual_seed_all(1)", "torch.manual_seed, which seeds every device"),
        ("torch.cuda.amp.autocast()", "torch.amp.autocast(world.device.type)"),
        ("torch.cuda.amp.GradScaler()", "torch.amp.GradScaler(world.device.type)"),
        ('torch.device("cuda", 1)', "world.device"),
        ('torch.autocast("cuda")', "world.device.type"),
        ("x.cuda()", ".to(world.device)"),
        ('torch.distributed.init_process_group("nccl")', '"devices"'),
        ("torch.backends.cudnn.deterministic = True", "torch.use_deterministic_algorithms(True)"),
    ],
)
def test_the_common_ones_have_the_replacement_that_one_would_write(tmp_path: Path, code: str, replacement: str) -> None:
    assert [each.replacement for each in found_in(tmp_path, f"import torch\n{code}")] == [replacement]


MODULE = "torch.get_device_module(world.device)"
REPLACEMENTS = sorted(names.replacements())


@pytest.mark.parametrize("text", REPLACEMENTS)
def test_every_name_in_a_replacement_exists(text: str) -> None:
    with devices.init("cpu") as world:
        for dotted in re.findall(r"\b(?:torch|devices|world)(?:\.\w+)+", text):
            if dotted.startswith("world."):
                value: object = world
                for part in dotted.split(".")[1:]:
                    value = getattr(value, part)
            else:
                pkgutil.resolve_name(dotted)


@pytest.mark.parametrize("text", [text for text in REPLACEMENTS if f"{MODULE}." in text])
def test_what_a_replacement_takes_from_the_devices_module_a_cpu_has_too_or_it_says_so(text: str) -> None:
    for name in re.findall(re.escape(MODULE) + r"\.(\w+)", text):
        assert hasattr(torch.cuda, name)
        assert hasattr(torch.cpu, name) is ("which a CPU has not" not in text)


def test_a_replacement_in_torch_accelerator_says_when_it_raises() -> None:
    raising = [
        text
        for text in REPLACEMENTS
        for name in re.findall(r"torch\.accelerator\.(\w+)", text.partition(";")[0])
        if name not in ("is_available", "device_count", "current_accelerator") and "it raises where" not in text
    ]
    assert raising == []


@pytest.mark.parametrize("text", [text for text in REPLACEMENTS if text.startswith("torch.accelerator.")])
def test_a_replacement_in_torch_accelerator_raises_on_a_cpu_exactly_when_it_says_so(text: str) -> None:
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    function = pkgutil.resolve_name(re.match(r"[\w.]+", text)[0])  # type: ignore[index]
    if function is torch.accelerator.device_index:
        with pytest.raises(RuntimeError), function(0):
            pass
    elif "it raises" in text:
        with pytest.raises(RuntimeError):
            function()
    else:
        function()


def test_the_functions_that_have_a_replacement_are_torchs() -> None:
    known = [name for name in names._NAMES if name.startswith(("torch.cuda", "torch.backends.cu"))]
    assert len(known) > 80
    for name in known:
        pkgutil.resolve_name(name)


def test_the_variable_of_the_allocator_is_torchs() -> None:
    bound = names.bound_variable("PYTORCH_CUDA_ALLOC_CONF")
    assert bound is not None
    assert bound.replacement in str(torch.cuda.memory.get_allocator_backend.__doc__)


def test_what_has_no_replacement_says_so_plainly() -> None:
    for name in ("torch.cuda.nccl.version", "torch.cuda.CUDAGraph", "torch.cuda.ipc_collect", "torch.version.cuda"):
        bound = names.bound_name(name)
        assert bound is not None
        assert bound.replacement.startswith("no portable replacement: ")
