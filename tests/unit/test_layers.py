"""Imports only go down, between rooms and inside them; imports under TYPE_CHECKING count too."""

from __future__ import annotations

from pathlib import Path

from tests.house import ROOMS, circles, room_of, structure


def test_imports_only_go_down_between_rooms() -> None:
    level = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    edges = structure().imports
    assert sum(map(len, edges.values())) > 500
    unknown = {room_of(m) for m in edges} - level.keys()
    assert not unknown, f"give these a layer: {sorted(unknown)}"
    up = [
        f"{a} -> {b}"
        for a, targets in edges.items()
        for b in targets
        if room_of(a) != room_of(b) and level[room_of(b)] <= level[room_of(a)]
    ]
    assert not up, "\n".join(sorted(up))


def test_no_circle_of_files() -> None:
    assert circles(structure().imports) == []


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


def test_a_build_asks_before_it_imports_arrays_and_reads_no_report_up_to_scores(
    tmp_path: Path,
) -> None:
    """Nor is a pattern compiled or a default's settings model built that nothing has asked for; and
    a prompt whose pairs are found later, with its partition's, imports no arrays."""
    import subprocess
    import sys

    flags = "--source pku-saferlhf --sample --engine scripted --limit 2 --until score --out".split()
    code = (
        "import sys, mora_data.pipeline\n"
        "from mora_data.rewriting.patterns import META\n"
        "from mora_data.settings import LocalSettings\n"
        "from types import SimpleNamespace\n"
        "from mora_data.pipeline.asking import _n_pairs\n"
        "assert _n_pairs(None, SimpleNamespace(arms=[SimpleNamespace(pairs=())])) == 0\n"
        "late = ('numpy', 'pyarrow', 'ray', 'aiohttp', 'tenacity')\n"
        "made = LocalSettings.__pydantic_complete__, len(vars(META)) > 1\n"
        "print([m for m in late if m in sys.modules], made)\n"
        "from mora_data.cli import main\n"
        f"main({['build', *flags, str(tmp_path / 'run')]!r})\n"
        "late = ('mora_data.report', 'pyarrow.compute')\n"
        "print([m for m in late if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[] (False, False)", "[]"), done.stdout
