"""Finds where a program uses, replaces or overrides what an installed distribution keeps to itself.

It reads syntax trees, and knows these cases:

- a name with a leading underscore that an import reaches, in the path of a module or as its last part;
- such an attribute of anything but `self` and `cls`, unless this very file defines the name; by `getattr`, too;
- such an argument of a call;
- a class that defines such a name where a class of a library that it inherits from has it, or reads it from there;
- `__wrapped__`, which leads behind a decorator;
- an attribute of a library's module or class that is assigned, by `setattr` too;
- all of these in a program that is kept as text, and in annotations.

Names with two leading underscores are Python's own, and so are those with one on either side (`_missing_`). What our
own packages keep to themselves is no concern of this. What it cannot see: a name that is made while the program runs,
and an attribute of `self` that a library's class gives its objects in its methods only.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# The standard library documents these.
DOCUMENTED = {
    *("os._exit", "sys._MEIPASS", "sys.tracebacklimit", "tempfile.tempdir"),
    *("_asdict", "_fields", "_field_defaults", "_make", "_replace"),  # of named tuples
}
OWN = {"health_predict", "components", "pipelines", "service", "infra", "policy"}


@dataclass(frozen=True, order=True)
class Finding:
    """A name, and the line that has it."""

    line: int
    name: str


def private(name: str) -> bool:
    """Whether a name is kept to those who made it."""
    return name == "__wrapped__" or (name.startswith("_") and name != "_" and not name.endswith("_") and name[1] != "_")


def findings(source: str) -> list[Finding]:
    """What a program uses of the private parts of others, in the order of its lines."""
    return sorted(set(_Program(ast.parse(source)).findings()))


class _Program:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.imported = _imported(tree)  # name here -> dotted name of what it is
        self.defined = _defined(tree)

    def findings(self) -> Iterator[Finding]:
        for node in ast.walk(self.tree):
            match node:
                case ast.Import() | ast.ImportFrom():
                    yield from self._import(node)
                case ast.Attribute():
                    yield from self._attribute(node)
                case ast.Call():
                    yield from self._call(node)
                case ast.ClassDef():
                    yield from self._class(node)
                case ast.Constant(value=str(text)):
                    yield from _text(text, node.lineno)
                case ast.JoinedStr(values=values):
                    parts = (str(part.value) if isinstance(part, ast.Constant) else "x" for part in values)
                    yield from _text("".join(parts), node.lineno)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
                yield from self._assignment(node)
            if annotation := getattr(node, "annotation", None) or getattr(node, "returns", None):
                yield from self._annotation(annotation)

    def _import(self, node: ast.Import | ast.ImportFrom) -> Iterator[Finding]:
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names]
        for name in names:
            yield from _dotted(name, node.lineno)

    def _attribute(self, node: ast.Attribute) -> Iterator[Finding]:
        if not private(node.attr) or node.attr in DOCUMENTED:
            return
        if node.attr != "__wrapped__":
            if node.attr in self.defined:
                return
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                return  # what a class reads of a library's class is found there
        name = self._name(node)
        if name not in DOCUMENTED and name.partition(".")[0] not in OWN:
            yield Finding(node.lineno, name)

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        for argument in node.keywords:
            if argument.arg and private(argument.arg) and argument.arg not in self.defined:
                yield Finding(node.lineno, f"{self._name(node.func)}({argument.arg}=)")
        called = self._name(node.func)
        texts = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]
        if called.rpartition(".")[2] == "import_module" and texts and isinstance(texts[0], str):
            yield from _dotted(texts[0], node.lineno)
        if called in ("getattr", "setattr", "hasattr", "delattr") and len(texts) > 1:
            text = texts[1]
            if isinstance(text, str) and private(text) and text not in self.defined:
                yield Finding(node.lineno, f"{self._name(node.args[0])}.{text}")
            if called in ("setattr", "delattr") and not isinstance(text, str):
                yield Finding(node.lineno, f"{called} of any name")
            elif called in ("setattr", "delattr") and self._is_library(node.args[0]):
                yield Finding(node.lineno, f"{self._name(node.args[0])}.{text} =")

    def _class(self, node: ast.ClassDef) -> Iterator[Finding]:
        """What it overrides, and what it reads of itself that only a library's class has."""
        theirs = {name for base in self._bases(node) for name in vars(base) if private(name)}
        for child in ast.walk(node):
            own = isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                name = child.name
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                name = child.id
            elif own and child.value.id in ("self", "cls"):  # type: ignore[attr-defined]
                name = child.attr  # type: ignore[attr-defined]
            elif isinstance(child, ast.Attribute) and "super" in self._name(child.value):
                name = child.attr
            else:
                continue
            if name in theirs and name not in DOCUMENTED:
                yield Finding(child.lineno, f"{node.name}.{name}")

    def _bases(self, node: ast.ClassDef) -> Iterator[type]:
        """The classes of libraries that a class inherits from, as far as they can be imported here."""
        local = {child.name: child for child in ast.walk(self.tree) if isinstance(child, ast.ClassDef)}
        for base in node.bases:
            name = self._name(base)
            if name in local and local[name] is not node:
                yield from self._bases(local[name])
            elif isinstance(found := _imported_object(name), type):
                yield from (kind for kind in found.__mro__ if kind.__module__.partition(".")[0] not in OWN)

    def _assignment(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete) -> Iterator[Finding]:
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
        for part in (part for target in targets for part in ast.walk(target)):
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store | ast.Del):
                name = self._name(part)
                if self._is_library(part.value) and name not in DOCUMENTED:
                    yield Finding(part.lineno, f"{name} =")

    def _annotation(self, node: ast.expr) -> Iterator[Finding]:
        for child in ast.walk(node):
            if isinstance(child, ast.Constant) and isinstance(child.value, str):
                try:
                    quoted = ast.parse(child.value, mode="eval")
                except SyntaxError:
                    continue
                for attribute in ast.walk(quoted):
                    if isinstance(attribute, ast.Attribute):
                        yield from (Finding(child.lineno, found.name) for found in self._attribute(attribute))

    def _is_library(self, node: ast.expr) -> bool:
        """Whether this is a module or class that was imported, and not one of ours."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in self.imported:
            return False
        name = self._name(node)
        if name.partition(".")[0] in OWN:
            return False
        found = _imported_object(name)
        return found is None or isinstance(found, type) or type(found).__name__ == "module"

    def _name(self, node: ast.expr) -> str:
        """The dotted name of an expression, its first part as what was imported."""
        match node:
            case ast.Name():
                return self.imported.get(node.id, node.id)
            case ast.Attribute():
                return f"{self._name(node.value)}.{node.attr}"
            case ast.Call():
                return f"{self._name(node.func)}()"
            case ast.Subscript():
                return self._name(node.value)
        return "?"


def _imported(tree: ast.Module) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                names[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            module = f"{next(iter(OWN))}." if node.level else ""
            names.update({alias.asname or alias.name: f"{module}{node.module}.{alias.name}" for alias in node.names})
    return names


def _defined(tree: ast.Module) -> set[str]:
    """The names that a file gives to functions, classes, arguments, variables and attributes of `self` and `cls`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(attr=name, value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                found.add(name)
    return found


def _imported_object(name: str) -> Any:
    """What a dotted name stands for; None when it cannot be imported."""
    module, rest = name, ""
    while module:
        try:
            found: Any = importlib.import_module(module)
        except Exception:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
            continue
        break
    else:
        found = builtins
    for part in filter(None, rest.split(".")):
        found = getattr(found, part, None)
    return found


def _dotted(name: str, line: int) -> Iterator[Finding]:
    """A name that an import reaches."""
    first, *rest = name.split(".")
    if first and first not in OWN and name not in DOCUMENTED and any(private(part) for part in (first, *rest)):
        yield Finding(line, name)


def _text(text: str, line: int) -> Iterator[Finding]:
    """What a text uses that is a program."""
    if "import " not in text:
        return
    try:
        tree = ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return
    for found in _Program(tree).findings():
        yield Finding(line + found.line - 1, found.name)
