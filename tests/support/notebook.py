"""Runs the cells of a notebook as Jupyter does, inside a running event loop.

text = executed(text)       # with the outputs that its cells have now
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any


async def run_cells(sources: list[str]) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell: what it printed, then what its last expression shows."""
    names: dict[str, Any] = {}
    return [_outputs(source, names, number) for number, source in enumerate(sources, 1)]


def _outputs(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307
    out: list[dict[str, Any]] = []
    if printed.getvalue():
        out.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    if value is not None:
        data = {"text/plain": repr(value)}
        if hasattr(value, "_repr_html_"):
            data = {"text/html": value._repr_html_(), "text/plain": type(value).__name__}
        out.append(
            {
                "output_type": "execute_result",
                "data": data,
                "metadata": {},
                "execution_count": number,
            }
        )
    return out


def executed(notebook: str) -> str:
    """The text of a notebook with the outputs that its cells have now, run in an empty folder."""
    tree: dict[str, Any] = json.loads(notebook)
    cells = [c for c in tree["cells"] if c["cell_type"] == "code"]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            found = asyncio.run(run_cells(["".join(c["source"]) for c in cells]))
        finally:
            os.chdir(before)
    for number, (cell, outputs) in enumerate(zip(cells, found, strict=True), 1):
        cell |= {"outputs": outputs, "execution_count": number}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
