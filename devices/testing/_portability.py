"""What in a program's source is bound to one vendor, where, and what is portable in its place."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from devices.testing import _portability_names as names
from devices.testing._portability_names import Bound
from devices.testing._static_names import Found, Imported, Module, Program, Scope

# A device's name as torch takes it, or its type alone; the backend of a process group.
_Test = Callable[[str], bool]
_Meant = tuple[_Test, Bound]
_DEVICE: _Meant = (names.is_device_string, Bound("device-string", names.DEVICE))
_DEVICE_TYPE: _Meant = (names.is_device_string, Bound("device-string", names.DEVICE_TYPE))
_BACKEND: _Meant = (names.is_backend_string, Bound("backend", names.BACKEND))
_TENSOR_TYPE: _Meant = (names.is_tensor_type, Bound("device-string", names.TYPED_STRING))
_BRANCH: _Meant = (names.is_device_string, Bound("device-string", names.BRANCH))
_BACKEND_BRANCH: _Meant = (names.is_backend_string, Bound("backend", names.ASK_BACKEND))

# Which positional argument of torch's own functions is one of those.
_POSITIONS: dict[str, tuple[int, _Meant]] = {
    "torch.Event": (0, _DEVICE),
    "torch.Generator": (0, _DEVICE),
    "torch.Stream": (0, _DEVICE),
    "torch.amp.GradScaler": (0, _DEVICE_TYPE),
    "torch.amp.autocast": (0, _DEVICE_TYPE),
    "torch.amp.autocast_mode.autocast": (0, _DEVICE_TYPE),
    "torch.amp.is_autocast_available": (0, _DEVICE_TYPE),
    "torch.autocast": (0, _DEVICE_TYPE),
    "torch.device": (0, _DEVICE),
    "torch.distributed.Backend": (0, _BACKEND),
    "torch.distributed.DeviceMesh": (0, _DEVICE_TYPE),
    "torch.distributed.device_mesh.DeviceMesh": (0, _DEVICE_TYPE),
    "torch.distributed.get_default_backend_for_device": (0, _DEVICE),
    "torch.distributed.is_backend_available": (0, _BACKEND),
    "torch.distributed.tensor.DeviceMesh": (0, _DEVICE_TYPE),
    "torch.get_autocast_dtype": (0, _DEVICE_TYPE),
    "torch.get_device_module": (0, _DEVICE),
    "torch.is_autocast_enabled": (0, _DEVICE_TYPE),
    "torch.load": (1, _DEVICE),
    "torch.set_autocast_dtype": (0, _DEVICE_TYPE),
    "torch.set_autocast_enabled": (0, _DEVICE_TYPE),
}
# And of functions that are known by their last name, from wherever they were imported.
_LAST_POSITIONS: dict[str, tuple[int, _Meant]] = {
    "init_device_mesh": (0, _DEVICE_TYPE),
    "init_process_group": (0, _BACKEND),
    "new_group": (2, _BACKEND),
    "set_default_device": (0, _DEVICE),
    "set_default_tensor_type": (0, _TENSOR_TYPE),
    "to": (0, _DEVICE),
    "type": (0, _TENSOR_TYPE),
}
# Arguments that these take of some vendors' devices only.
_DEVICE_IDS = {
    **dict.fromkeys(("DataParallel", "DistributedDataParallel", "barrier"), ("device_ids", "output_device")),
    **dict.fromkeys(("init_process_group", "new_group"), ("device_id",)),
}
_OF_THE_ENVIRONMENT = ("delenv", "get", "getenv", "pop", "putenv", "setdefault", "setenv", "unsetenv")
_WITH_DEFAULT = ("field", "get", "getattr", "getenv", "pop", "setdefault")
_WITH_KEY = (*_WITH_DEFAULT, "putenv", "setattr", "setenv")
_SPELLINGS = ("lower", "strip", "upper")
_DEVICE_NAME = re.compile(r"(.*_)?(dev|devices?|map_location)(_.*)?")
_BACKEND_NAME = re.compile(r"(.*_)?backends?(_.*)?")


@dataclass(frozen=True, order=True, slots=True)
class Finding:
    """One place in a program that is bound to a vendor.

    Attributes:
        path: the source file.
        line: its line, from 1.
        column: the character on it, from 1.
        code: what starts there; of an import, also what it is imported from.
        kind: device-module (`torch.cuda.*`), device-string (`"cuda"`), device-method (`.cuda()`), backend (`"nccl"`),
            device-ids, torch-backends (`torch.backends.cuda`), environment (`NCCL_*`) or vendor-package (`torch_xla`).
        replacement: what a portable program writes; it starts with "no portable replacement" where there is none and
            with "nothing to write" where the line goes. `world` is what `devices.init()` returned.
    """

    path: str
    line: int
    column: int
    code: str
    kind: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.kind}: {self.code} -> {self.replacement}"


def find(script: str | Path) -> tuple[Finding, ...]:
    """Return all that is bound to a vendor in `script` and in the modules that it imports from its own folder.

    The sources are read, not run. What is built while the program runs (a device's name read from a file, a module
    imported by a computed name) is not seen.

    Raises:
        ArgumentError: a file cannot be read or is not Python; the message says which and where.
    """
    program = Program(Path(script))
    return tuple(sorted(_Search(program).findings()))


def as_data(findings: Iterable[Finding]) -> list[dict[str, str | int]]:
    """Return findings as plain data, one dict each, for JSON."""
    return [asdict(finding) for finding in findings]


class _Search:
    """A walk through all modules of a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._found: dict[tuple[Path, int, int], Finding] = {}
        self._reported: set[ast.AST] = set()  # as part of a longer name

    def findings(self) -> Iterable[Finding]:
        for module in self._program.modules:
            for node, scope in module.nodes:
                self._look(node, scope)
        return self._found.values()

    def _look(self, node: ast.AST, scope: Scope) -> None:
        match node:
            case ast.Import():
                for alias in node.names:
                    self._import(alias, alias.name, f"import {alias.name}", scope)
            case ast.ImportFrom(level=0):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}".removesuffix(".*")
                    self._import(alias, full, f"from {node.module} import {alias.name}", scope)
            case ast.Call():
                self._call(node, scope)
            case ast.Attribute() | ast.Name():
                self._name(node, node, scope)
            case ast.Assign():
                for target in node.targets:
                    self._named(_identifier(target), node.value, scope)
            case ast.AnnAssign() | ast.NamedExpr() if node.value is not None:
                self._named(_identifier(node.target), node.value, scope)
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                self._named(_identifier(node.target), node.iter, scope)
            case ast.Return() if node.value is not None:
                if isinstance(scope.opened_by, ast.FunctionDef | ast.AsyncFunctionDef):
                    self._named(scope.opened_by.name, node.value, scope)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                for parameter, default in _defaults(node.args):
                    self._named(parameter, default, scope)
            case ast.Dict():
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        self._named(key.value, value, scope)
                        self._variable(key, scope)
            case ast.Subscript():
                self._variable(node.slice, scope)
            case ast.Compare():
                self._comparison(node, scope)
            case _:
                pass

    def _import(self, alias: ast.alias, full: str, code: str, scope: Scope) -> None:
        if (bound := names.bound_name(full)) and not self._program.owns(full):
            self._add(alias, scope.module, bound, code)

    def _name(self, node: ast.Attribute | ast.Name, whole: ast.expr, scope: Scope) -> bool:
        """Report `whole`, a name or its call, if the name is bound to a vendor; return whether it is."""
        if node in self._reported:
            return True
        meant = self._program.meaning(node, scope)
        bound = names.bound_name(meant.name) if isinstance(meant, Imported) else None
        if bound and isinstance(node, ast.Name) and not isinstance(scope.find(node.id), Imported):
            bound = None  # what it was assigned is reported there
        if bound:
            self._add(whole, scope.module, bound)
            part: ast.expr = node
            while isinstance(part, ast.Attribute):
                self._reported.add(part)
                part = part.value
            self._reported.add(part)
        elif isinstance(node, ast.Attribute) and node.attr == "is_cuda":
            self._add_method(node, node, scope.module, names.IS_CUDA)
        return bound is not None

    def _call(self, node: ast.Call, scope: Scope) -> None:
        meant = self._program.meaning(node.func, scope)
        full = meant.name if isinstance(meant, Imported) else ""
        last = full.rpartition(".")[2] or _identifier(node.func)
        if isinstance(node.func, ast.Attribute | ast.Name) and self._name(node.func, node, scope):
            pass
        elif last == "cuda" and isinstance(node.func, ast.Attribute) and not isinstance(meant, Found):
            self._add_method(node.func, node, scope.module, names.TENSOR_METHOD)
        elif full == "torch.device":
            self._torch_device(node, scope)
            return
        index, expected = _POSITIONS.get(full) or _LAST_POSITIONS.get(last) or (len(node.args), _DEVICE)
        for argument in node.args[index : index + 1]:
            self._strings(argument, scope, *expected)
        self._named_arguments(node, last, scope)
        if isinstance(meant, Found):
            for parameter, argument in zip(_parameters(meant.node), node.args, strict=False):
                self._named(parameter, argument, scope)
        if last == "startswith" and isinstance(node.func, ast.Attribute):
            self._compared([node.func.value], node.args, scope)
        if last in _OF_THE_ENVIRONMENT:
            for argument in node.args[:1]:
                self._variable(argument, scope)

    def _torch_device(self, node: ast.Call, scope: Scope) -> None:
        """Report the whole call if it names a vendor's device itself, else where the name that it is given does."""
        test, bound = _DEVICE
        inside = set(ast.walk(node))
        for argument in (*node.args[:1], *(keyword.value for keyword in node.keywords)):
            for leaf, where, text in self._leaves(argument, scope):
                if test(text):
                    self._add(node if leaf in inside else leaf, where.module, bound)

    def _named_arguments(self, node: ast.Call, last: str, scope: Scope) -> None:
        """Look at the arguments that something in the call names: a keyword, an option, the key of a default."""
        texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        options = [text for text in texts if text.startswith("-") or last == "add_argument"]
        for keyword in node.keywords:
            name = keyword.arg or ""
            if name in _DEVICE_IDS.get(last, ()):
                self._add(keyword, scope.module, Bound("device-ids", names.WITHOUT))
            elif bound := names.bound_variable(name):
                self._add(keyword, scope.module, bound)
            for each in (name, *(options if name in ("choices", "const", "default") else ())):
                self._named(each, keyword.value, scope)
        for before, after in itertools.pairwise(node.args if last in _WITH_KEY else ()):
            if isinstance(before, ast.Constant) and isinstance(before.value, str):
                self._named(before.value, after, scope)

    def _comparison(self, node: ast.Compare, scope: Scope) -> None:
        sides = [node.left, *node.comparators]
        self._compared(sides, sides, scope)
        if isinstance(node.ops[0], ast.In | ast.NotIn):
            self._variable(node.left, scope)

    def _compared(self, named: Iterable[ast.expr], values: Iterable[ast.expr], scope: Scope) -> None:
        """Report the strings among `values` that what `named` says is compared with."""
        identifiers = [_identifier(each) for each in named]
        for value in values:
            if any(_is_device_name(name) for name in identifiers):
                self._strings(value, scope, *_BRANCH)
            if any(_is_backend_name(name) for name in identifiers):
                self._strings(value, scope, *_BACKEND_BRANCH)

    def _named(self, name: str, value: ast.expr, scope: Scope) -> None:
        """Report the strings that `value` may be, if `name` says that it is a device or a backend."""
        if _is_device_name(name):
            self._strings(value, scope, *(_DEVICE_TYPE if name.lower().endswith("type") else _DEVICE))
        if _is_backend_name(name):
            self._strings(value, scope, *_BACKEND)

    def _variable(self, key: ast.expr, scope: Scope) -> None:
        for leaf, where, text in self._leaves(key, scope):
            if bound := names.bound_variable(text):
                self._add(leaf, where.module, bound)

    def _strings(self, value: ast.expr, scope: Scope, test: _Test, bound: Bound) -> None:
        for leaf, where, text in self._leaves(value, scope):
            if test(text):
                self._add(leaf, where.module, bound)

    def _leaves(self, node: ast.AST, scope: Scope, far: int = 0) -> Iterator[tuple[ast.expr, Scope, str]]:
        """Yield the strings that an expression may be, or hold, and where each of them stands."""
        inner: Iterable[ast.expr] = ()
        match node:
            case ast.expr() if (text := _text(node)) is not None:
                yield node, scope, text
            case ast.IfExp():
                inner = (node.body, node.orelse)
            case ast.BoolOp() | ast.Dict():
                inner = node.values
            case ast.List() | ast.Tuple() | ast.Set():
                inner = node.elts
            case ast.NamedExpr() | ast.Starred():
                inner = (node.value,)
            case ast.Call() if _identifier(node.func) in _WITH_DEFAULT:
                inner = (*node.args[1:], *(each.value for each in node.keywords if each.arg == "default"))
            case ast.Name() | ast.Attribute():
                meant = self._program.meaning(node, scope)
                if isinstance(meant, Found) and far < 10:
                    yield from self._leaves(meant.node, meant.scope, far + 1)
            case _:
                pass
        for each in inner:
            yield from self._leaves(each, scope, far)

    def _add_method(self, attribute: ast.Attribute, whole: ast.expr, module: Module, replacement: str) -> None:
        """Report `.cuda()` at its own place, which may be lines below the start of what it is called on."""
        line, end = attribute.end_lineno or attribute.lineno, attribute.end_col_offset or 0
        start = end - len(attribute.attr.encode()) - 1
        last = whole.end_col_offset if whole.end_lineno == line else end
        self._put(module, line, start, module.code(line, start, last), Bound("device-method", replacement))

    def _add(self, node: ast.expr | ast.keyword | ast.alias, module: Module, bound: Bound, code: str = "") -> None:
        if not code:
            whole = node.end_lineno == node.lineno
            code = module.code(node.lineno, node.col_offset, node.end_col_offset) if whole else ast.unparse(node)
        self._put(module, node.lineno, node.col_offset, code, bound)

    def _put(self, module: Module, line: int, offset: int, code: str, bound: Bound) -> None:
        column = module.column(line, offset)
        finding = Finding(str(module.path), line, column, code, bound.kind, bound.replacement)
        self._found.setdefault((module.path, line, column), finding)


def _is_device_name(name: str) -> bool:
    return _DEVICE_NAME.fullmatch(name.lower().lstrip("-").replace("-", "_")) is not None


def _is_backend_name(name: str) -> bool:
    return _BACKEND_NAME.fullmatch(name.lower().lstrip("-").replace("-", "_")) is not None


def _identifier(node: ast.AST) -> str:
    """Return the name that says what an expression is: `device` of `x.device.type`, of `args["device"]`."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute(value=value, attr="type"):
            return _identifier(value)
        case ast.Attribute():
            return node.attr
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Call(func=ast.Name(id="str"), args=[argument]):
            return _identifier(argument)
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in _SPELLINGS:
            return _identifier(value)
        case ast.Call():
            return _identifier(node.func)
        case _:
            return ""


def _text(node: ast.AST) -> str | None:
    """Return a string as far as it is written, with 0 for each value that is put into it; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr():
            return "".join(_text(part) or "0" for part in node.values)
        case ast.BinOp(op=ast.Add()) if (left := _text(node.left)) is not None:
            return left + (_text(node.right) or "0")
        case ast.BinOp(op=ast.Mod()) if (left := _text(node.left)) is not None:
            return re.sub("%[ds]", "0", left)
        case ast.Call(func=ast.Attribute(value=template, attr="format")) if (left := _text(template)) is not None:
            return re.sub(r"\{\w*\}", "0", left)
        case _:
            return None


def _parameters(node: ast.AST) -> list[str]:
    """Return the names of a function's positional parameters, or of those that a class is made with."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            return [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        case ast.ClassDef():
            makers = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
            return _parameters(makers[0])[1:] if makers else []
        case _:
            return []


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    yield from ((each.arg, default) for each, default in zip(with_default, arguments.defaults, strict=True))
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield each.arg, default
