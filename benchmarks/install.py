"""What the base install brings along: packages and megabytes, read from the metadata of this
environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.common import ROOT, Figure, Scale

GOAL = 50


def requirements(
    texts: Iterable[str], extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """(name, extras) of the requirement lines that count here."""
    from packaging.requirements import Requirement

    for text in texts:
        r = Requirement(text)
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras | {""}):
            yield re.sub(r"[-_.]+", "-", r.name).lower(), frozenset(r.extras)


def direct() -> list[tuple[str, frozenset[str]]]:
    """What pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    return list(requirements(re.findall(r'"([^"]+)"', listed), frozenset()))


def base_install() -> dict[str, Distribution]:
    """Every distribution that the base install needs, besides mora-data itself."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = direct()
    while todo:
        name, extras = item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError as e:
            raise RuntimeError(f"{name} is not installed here") from e
        todo += requirements(found[name].requires or (), extras)
    return found


def megabytes(dist: Distribution) -> float:
    """Size of a distribution's files on disk."""
    paths = (Path(str(dist.locate_file(f))) for f in dist.files or ())
    return sum(p.stat().st_size for p in paths if p.is_file()) / 1e6


def figures(scale: Scale) -> Iterator[Figure]:
    """Packages, and their size with the largest ones."""
    found = base_install()
    sizes = {name: megabytes(d) for name, d in found.items()}
    largest = sorted(sizes, key=lambda n: -sizes[n])[:3]
    torch = "torch" in found
    named = len(direct())
    yield Figure(
        "base install, packages",
        f"<= {GOAL}, no torch",
        f"{len(found)}{', with torch' if torch else ''}",
        f"{named} named by us",
        len(found) / named,
        len(found) <= GOAL and not torch,
    )
    yield Figure(
        "base install, MB on disk",
        "-",
        f"{sum(sizes.values()):.0f}",
        "largest: " + ", ".join(f"{n} {sizes[n]:.0f}" for n in largest),
    )
