"""The shape of the package in numbers: `python -m tests.house`.

    modules 150, loose at the top 10, lines 32000, circles of files 0, ...

`structure()` reads every import of `mora_data`, those under TYPE_CHECKING and inside functions too;
tests/unit/test_layers.py holds the law that they only go down.
"""

from __future__ import annotations

import ast
import importlib
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mora_data"
ROOMS = (  # from the top down; a room imports from those below it
    {"__main__"},
    {"cli"},
    {"mora_pairs"},
    {"api"},
    {"pipeline"},
    {"cluster", "evaluate", "viewer"},
    {"prompts", "report"},
    {"selection"},
    {"rewriting"},
    {"rewards"},
    {"simulator", "sources"},
    {"engines", "dataset", "statistics"},
    {"run"},
    {"plugins"},
    {"settings"},
    {"resources"},
    {"text"},
    {"secrets"},
    {"types", "errors"},
)


@dataclass(frozen=True)
class Structure:
    """Modules with their files, and what each imports from the package."""

    files: Mapping[str, Path]
    imports: Mapping[str, Sequence[str]]


def structure() -> Structure:
    """The package as it stands on disk."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return Structure(files, {name: _imports(name, files) for name in files if name != "mora_data"})


def room_of(module: str) -> str:
    """The part of the package that a module belongs to."""
    return module.split(".")[1]


def circles(imports: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches the others (strongly connected, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in imports.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in imports:
        if node not in index:
            visit(node)
    return found


def _imports(name: str, files: Mapping[str, Path]) -> list[str]:
    path = files[name]
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for a in node.names:
                found.add(f"{module}.{a.name}" if f"{module}.{a.name}" in files else module)
    return sorted((found & files.keys()) - {name, "mora_data"})


def _any_signatures(files: Mapping[str, Path]) -> int:
    """Public functions and methods whose signature says dict[str, Any] or Mapping[str, Any]."""
    n = 0
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name.startswith("_") and not node.name.startswith("__"):
                    continue
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                said = [ast.unparse(x) for x in [*(a.annotation for a in args), node.returns] if x]
                n += any("[str, Any]" in x for x in said)
    return n


def _most_changed_after_init(files: Mapping[str, Path]) -> tuple[int, str]:
    """The class with the most attributes that methods other than __init__ assign."""
    worst = (0, "")
    for name, path in files.items():
        for cls in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(cls, ast.ClassDef):
                continue
            changed = set()
            for method in cls.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    if method.name in ("__init__", "__enter__", "__aenter__"):
                        continue
                    for node in ast.walk(method):
                        targets = (
                            node.targets
                            if isinstance(node, ast.Assign)
                            else [node.target]
                            if isinstance(node, ast.AugAssign | ast.AnnAssign)
                            else []
                        )
                        for t in [x for y in targets for x in ast.walk(y)]:
                            if (
                                isinstance(t, ast.Attribute)
                                and isinstance(t.value, ast.Name)
                                and t.value.id == "self"
                            ):
                                changed.add(t.attr)
            worst = max(worst, (len(changed), f"{name}.{cls.name}"))
    return worst


def _names_twice(files: Mapping[str, Path]) -> list[str]:
    """Public functions and classes that more than one module defines."""
    where: defaultdict[str, set[str]] = defaultdict(set)
    for name, path in files.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            if isinstance(node, kinds) and not node.name.startswith("_"):
                where[node.name].add(name)
    return sorted(n for n, found in where.items() if len(found) > 1)


def _demo_classes() -> tuple[int, int]:
    """Own classes that a demo build of four prompts instantiates, and the modules it loads."""
    from mora_data import build

    seen: set[type] = set()

    def profile(frame: object, event: str, arg: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and code.co_name in ("__init__", "__new__") and code.co_argcount:
            made = frame.f_locals.get(code.co_varnames[0])  # type: ignore[attr-defined]
            kind = made if isinstance(made, type) else type(made)
            if kind.__module__.startswith("mora_data"):
                seen.add(kind)

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(profile)
        threading.setprofile(profile)
        try:
            build("pku-saferlhf", sample=True, out=folder, quiet=True, overrides={"mine.limit": 4})
        finally:
            sys.setprofile(None)
    return len(seen), sum(m.startswith("mora_data") for m in sys.modules)


def main() -> None:
    """Print the figures."""
    s = structure()
    lines = sum(len(p.read_text("utf-8").splitlines()) for p in s.files.values())
    changed, who = _most_changed_after_init(s.files)
    twice = _names_twice(s.files)
    print(f"modules {len(s.files)}")
    print(f"loose modules at the top {len(list(PACKAGE.glob('*.py')))}")
    print(f"lines {lines}")
    print(f"circles of files {len(circles(s.imports))}")
    print(f"public signatures with [str, Any] {_any_signatures(s.files)}")
    print(f"most attributes changed after __init__ {changed} ({who})")
    print(f"public names defined twice {len(twice)}: {' '.join(twice)}")
    importlib.import_module("mora_data")
    made, loaded = _demo_classes()
    print(f"own classes instantiated by the demo build {made}, modules loaded {loaded}")


if __name__ == "__main__":
    main()
