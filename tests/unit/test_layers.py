"""Imports only go down: cli -> pipeline -> stages -> engines | sources | ... -> config | store |
... -> types | errors."""

from __future__ import annotations

import ast
from pathlib import Path

import mora_data

PACKAGE = Path(mora_data.__file__).parent
LAYERS = [
    {"__main__"},
    {"__init__"},
    {"cli", "demo", "mora_pairs"},
    {"commands"},
    {"api", "probe"},
    {"pipeline", "evaluate", "estimate", "show", "capacity"},
    {"measuring", "cluster"},
    {"kit"},
    {"recipes", "manifest", "spending", "pulse"},
    {"stages", "report", "view"},
    {"engines", "sources", "rewards", "selection", "hub", "statistics", "progress"},
    {"config", "store", "templating"},
    {"resources", "text", "tasks"},
    {"types", "errors"},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
# shows the engines' counters; draws with the report's marks
SIBLINGS = {("progress", "engines"), ("view", "report")}


def imports() -> list[tuple[str, str, str]]:
    """(file, its top-level unit, unit it imports) for every import inside the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for target in _targets(node, parts):
                found.append((str(path.relative_to(PACKAGE)), parts[0], target))
    return found


def _targets(node: ast.AST, parts: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.name.split(".")[1] for a in node.names if a.name.startswith("mora_data.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level == 0:
        module = (node.module or "").split(".")
        if module[0] != "mora_data":
            return []
        return [module[1]] if len(module) > 1 else [a.name for a in node.names]
    package = parts[:-1]
    base = package[: len(package) - (node.level - 1)]
    if base:
        return [base[0]]
    return [node.module.split(".")[0]] if node.module else [a.name for a in node.names]


def test_imports_only_go_down() -> None:
    found = imports()
    assert len(found) > 100
    unknown = (
        {unit for _, a, b in found for unit in (a, b)} - LEVEL.keys() - {"__version__", "main"}
    )
    assert not unknown, f"give these a layer: {sorted(unknown)}"
    up = [
        f"{path}: {a} -> {b}"
        for path, a, b in found
        if a != b
        and b in LEVEL
        and LEVEL[b] <= LEVEL[a]
        and a != "__init__"
        and (a, b) not in SIBLINGS
    ]
    assert not up, "\n".join(up)


def test_help_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = (
        "torch",
        "datasets",
        "pandas",
        "openai",
        "transformers",
        "vllm",
        "numpy",
        "pyarrow",
        "pydantic",
        "aiohttp",
        "jinja2",
    )
    code = (
        "import sys\nfrom mora_data.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "build" in done.stdout


def test_a_build_asks_before_it_imports_arrays() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mora_data.pipeline; print([m for m in ('numpy', 'pyarrow', 'ray', 'aiohttp')"
        " if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
