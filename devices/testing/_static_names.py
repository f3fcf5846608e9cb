"""What each name of a program stands for, read from its source: nothing of it is imported or run.

A name stands for something only where its scope binds it once (imports that agree count as one); any other is unknown.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from devices.errors import ArgumentError

# A name that stands for a name that stands for a name ... ends here, and so does a circle of imports.
_FAR_ENOUGH = 20

_PYTHON = "Python {}.{}".format(*sys.version_info)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_ELEMENTS = (ast.List, ast.Tuple, ast.Set)


@dataclass(frozen=True, slots=True)
class Imported:
    """Something that is not the program's own, or one of its modules, by its full dotted name."""

    name: str


@dataclass(frozen=True, slots=True)
class Found:
    """An expression or a definition of the program, and the scope that it stands in."""

    node: ast.AST
    scope: Scope


@dataclass(eq=False, slots=True)
class Scope:
    """The names that a module, function, class or comprehension binds, each to one or more values; None is unknown."""

    module: Module
    outer: Scope | None
    opened_by: ast.AST
    bound: dict[str, list[Imported | ast.AST | None]] = field(default_factory=lambda: defaultdict(list))
    of_module: set[str] = field(default_factory=set)

    def bind(self, name: str, value: Imported | ast.AST | None) -> None:
        """Note that `name` is bound to `value`, here or, after `global`, in the module."""
        (self.module.scope if name in self.of_module else self).bound[name].append(value)

    def find(self, name: str) -> Imported | Found | None:
        """Return what `name` stands for when it is read here."""
        scope: Scope | None = self.module.scope if name in self.of_module else self
        while scope and (name not in scope.bound or (isinstance(scope.opened_by, ast.ClassDef) and scope is not self)):
            scope = scope.outer
        if scope is None:
            return None
        first, *others = scope.bound[name]
        if first is None or any(other != first or not isinstance(first, Imported) for other in others):
            return None
        return first if isinstance(first, Imported) else Found(first, scope)


class Module:
    """A source file, parsed.

    Attributes:
        nodes: every node with the scope that it stands in, in the source's order, an outer one before its parts.
        imports: the full names of all that it imports.
    """

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        tree, self._lines = _parsed(path)
        self.scope = Scope(self, None, tree)
        self.nodes = list(_nodes(tree, self.scope))
        self.imports: list[str] = []
        for node, scope in self.nodes:
            for name, value in _bindings(node, package):
                for owner in _owners(node, scope):
                    owner.bind(name, value)
                if isinstance(node, ast.ImportFrom) and isinstance(value, Imported):
                    self.imports.append(value.name)
            if isinstance(node, ast.Import):
                self.imports += [alias.name for alias in node.names]

    def column(self, line: int, offset: int) -> int:
        """Return the column, counted from 1, of the character that Python's parser has at a byte's `offset`."""
        return len(self._lines[line - 1].encode()[:offset].decode(errors="replace")) + 1

    def code(self, line: int, start: int, end: int | None = None) -> str:
        """Return what stands on `line` between two of the parser's offsets."""
        return self._lines[line - 1].encode()[start:end].decode(errors="replace")


class Program:
    """A script, and the modules that it imports from its own folder, and those that they import from there."""

    def __init__(self, script: Path) -> None:
        self._folder = script.parent
        self.script = Module(script, "")
        self._by_name: dict[str, Module] = {}
        by_path = {script.resolve(): self.script}
        waiting = [self.script]
        while waiting:
            for imported in waiting.pop().imports:
                for name, path in self._files(imported):
                    if path.resolve() not in by_path:
                        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                        by_path[path.resolve()] = Module(path, package)
                        waiting.append(by_path[path.resolve()])
                    self._by_name[name] = by_path[path.resolve()]
        self.modules = tuple(by_path.values())

    def owns(self, name: str) -> bool:
        """Return whether `name` is a module of the program, or lies in one."""
        return name.partition(".")[0] in self._by_name

    def meaning(self, node: ast.AST, scope: Scope, far: int = 0) -> Imported | Found | None:
        """Return what an expression stands for: itself, or what the name that it is stands for; None if unknown."""
        if isinstance(node, ast.Name):
            return self._followed(scope.find(node.id), far)
        if isinstance(node, ast.Attribute):
            owner = self.meaning(node.value, scope, far)
            return self._followed(Imported(f"{owner.name}.{node.attr}"), far) if isinstance(owner, Imported) else None
        return Found(node, scope)

    def _followed(self, found: Imported | Found | None, far: int) -> Imported | Found | None:
        if far > _FAR_ENOUGH:
            return None
        if isinstance(found, Found):
            return self.meaning(found.node, found.scope, far + 1)
        if found is None or found.name in self._by_name:
            return found
        owner = found.name
        while owner and owner not in self._by_name:
            owner = owner.rpartition(".")[0]
        if not owner:
            return found
        name, _, rest = found.name[len(owner) + 1 :].partition(".")
        meant = self._followed(self._by_name[owner].scope.find(name), far + 1)
        if not rest:
            return meant
        return self._followed(Imported(f"{meant.name}.{rest}"), far + 1) if isinstance(meant, Imported) else None

    def _files(self, name: str) -> Iterator[tuple[str, Path]]:
        """Yield the program's own files that importing `name` runs, or whose attribute it is."""
        parts = name.split(".")
        if parts[0] == "torch":  # a checkout of torch next to the script is still torch
            return
        for count in range(1, len(parts) + 1):
            stem = self._folder.joinpath(*parts[:count])
            for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
                if stem.name and path.is_file():
                    yield ".".join(parts[:count]), path
                    break


def _parsed(path: Path) -> tuple[ast.Module, list[str]]:
    try:
        raw = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = io.TextIOWrapper(io.BytesIO(raw), encoding).read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of an invalid escape, which is the program's own affair
            return ast.parse(text), text.split("\n")
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror or error}") from error
    except SyntaxError as error:
        at = f"{path}:{error.lineno}:{error.offset}" if error.lineno else str(path)
        raise ArgumentError(f"{at}: this is no source that {_PYTHON} can read: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArgumentError(f"{path}: this is no source that {_PYTHON} can read: {error}") from error


def _nodes(tree: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """Yield every node of a tree and its scope; what is written nested too deep for calls that nest is no matter."""
    waiting = [(tree, scope)]
    while waiting:
        node, scope = waiting.pop()
        yield node, scope
        if isinstance(node, ast.Global):
            scope.of_module.update(node.names)
        opens = isinstance(node, (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef))
        inner = Scope(scope.module, scope, node) if opens else scope
        waiting += reversed([(part, inner if inside else scope) for part, inside in _parts(node)])


def _owners(node: ast.AST, scope: Scope) -> Iterator[Scope]:
    """Yield the scopes that `node` binds a name in: after `nonlocal` any outer one may be meant."""
    while isinstance(node, ast.NamedExpr) and isinstance(scope.opened_by, _COMPREHENSIONS) and scope.outer is not None:
        scope = scope.outer  # `:=` in a comprehension binds outside of it
    yield scope
    while isinstance(node, ast.Nonlocal) and scope.outer is not None:
        scope = scope.outer
        yield scope


def _parts(node: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Yield the parts of a node, and whether each is inside the scope that the node opens, if it opens one."""
    if isinstance(node, _FUNCTIONS):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        outside = [*arguments.defaults, *arguments.kw_defaults, *(each.annotation for each in named)]
        if not isinstance(node, ast.Lambda):
            outside += [*node.decorator_list, node.returns]
        yield from ((part, False) for part in outside if part is not None)
        yield from ((part, True) for part in named)
        yield from ((part, True) for part in (node.body if isinstance(node.body, list) else [node.body]))
    elif isinstance(node, ast.ClassDef):
        yield from ((part, False) for part in (*node.decorator_list, *node.bases, *node.keywords))
        yield from ((part, True) for part in node.body)
    elif not isinstance(node, ast.arg):  # its annotation is a part of the function
        yield from ((part, True) for part in ast.iter_child_nodes(node))


def _bindings(node: ast.AST, package: str) -> Iterator[tuple[str, Imported | ast.AST | None]]:
    """Yield each name that `node` itself binds, and to what, where that is known."""
    match node:
        case ast.Import():
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, Imported(alias.name)) if alias.asname else (top, Imported(top))
        case ast.ImportFrom():
            module = _imported_from(node, package)
            for alias in node.names:
                imported = None if module is None else Imported(_joined(module, alias.name))
                yield alias.asname or alias.name, imported
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name, node
        case ast.Assign():
            for target in node.targets:
                yield from _assigned(target, node.value)
        case ast.NamedExpr():
            yield node.target.id, node.value
        case ast.AnnAssign() if node.value is not None:
            yield from _assigned(node.target, node.value)
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            # A name that takes each of several written values in turn stands for all of them.
            known = isinstance(node.target, ast.Name) and isinstance(node.iter, _ELEMENTS)
            yield from _assigned(node.target, node.iter if known else None)
        case ast.AugAssign():
            yield from _assigned(node.target, None)
        case ast.withitem() if node.optional_vars is not None:
            yield from _assigned(node.optional_vars, None)
        case ast.arg():
            yield node.arg, None
        case ast.Nonlocal():
            yield from ((name, None) for name in node.names)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name, None
        case ast.MatchMapping(rest=str(name)):
            yield name, None
        case ast.Delete():
            for target in node.targets:
                yield from _assigned(target, None)
        case _:
            pass


def _assigned(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.AST | None]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Starred):
        yield from _assigned(target.value, None)
    elif isinstance(target, ast.Tuple | ast.List):
        values: list[ast.expr | None] = [None] * len(target.elts)
        given = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        if len(given) == len(target.elts) and not any(isinstance(each, ast.Starred) for each in (*target.elts, *given)):
            values = list(given)
        for each, one in zip(target.elts, values, strict=True):
            yield from _assigned(each, one)


def _imported_from(node: ast.ImportFrom, package: str) -> str | None:
    """Return the full name of the module that `node`, in `package`, imports from; None if it lies above the program."""
    if not node.level:
        return node.module
    above = package.split(".") if package else []
    if node.level - 1 > len(above):
        return None
    return _joined(".".join(above[: len(above) - node.level + 1]), node.module or "")


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))
