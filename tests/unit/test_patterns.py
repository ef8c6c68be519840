"""No pattern takes long on a text made to make it long: 50 ms of CPU for 64 kB, each of them.

The patterns are all those that the package's modules hold once they are imported. The texts are
runs of white space and signs, and for each pattern pieces of what it matches, again and again.
"""

from __future__ import annotations

import functools
import importlib
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mora_data
from mora_data.simulator.language import MOST_CHARS
from mora_data.text import _Pattern

if sys.version_info >= (3, 11):
    from re import _parser as parser
else:
    import sre_parse as parser

PACKAGE = Path(mora_data.__file__).parent
SOURCES = {
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p.read_text()
    for p in sorted(PACKAGE.rglob("*.py"))
}
SIZE = 64 << 10
LIMIT_S = 0.05
RUNS = (
    "\n",
    " ",
    "\t \n",
    "a",
    "a ",
    "<",
    "[",
    "{",
    "(",
    '"',
    "\\",
    '\\"',
    "#",
    "-",
    "1",
    "0 ",
    ": ",
)


def patterns() -> dict[str, re.Pattern[Any]]:
    """Every compiled pattern in a module of the package, by name."""
    found: dict[str, re.Pattern[Any]] = {}
    for name, source in SOURCES.items():
        if not re.search(r"re\.compile\(|_any_of\(|\bpattern\(", source):
            continue
        for attribute, value in vars(importlib.import_module(name)).items():
            values = value if isinstance(value, (list, tuple)) else [value]
            for i, one in enumerate(values):
                for part in one if isinstance(one, tuple) else (one,):
                    if isinstance(part, (re.Pattern, _Pattern)):
                        regex = re.compile(part.pattern, part.flags)
                        found.setdefault(f"{name}.{attribute}[{i}]", regex)
    return found


def sample(tree: Any, rng: random.Random, long: bool) -> str:
    """A text that the pattern matches, more or less."""
    out = []
    for op, argument in tree:
        kind = str(op)
        if kind in ("LITERAL", "NOT_LITERAL"):
            out.append(chr(argument) if kind == "LITERAL" else "x")
        elif kind == "ANY":
            out.append("x")
        elif kind == "IN":
            out.append(member(argument, rng))
        elif kind == "BRANCH":
            out.append(sample(rng.choice(argument[1]), rng, long))
        elif kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = argument
            most = min(int(high), low + (12 if long else 1))
            out += [sample(inner, rng, long) for _ in range(rng.randint(low, max(low, most)))]
        elif kind == "SUBPATTERN":
            out.append(sample(argument[-1], rng, long))
        elif kind == "ATOMIC_GROUP":
            out.append(sample(argument, rng, long))
        elif kind == "ASSERT":
            out.append(sample(argument[1], rng, long))
    return "".join(out)


def member(choices: Any, rng: random.Random) -> str:
    known = {
        "CATEGORY_SPACE": "\n",
        "CATEGORY_WORD": "a",
        "CATEGORY_DIGIT": "1",
        "CATEGORY_NOT_SPACE": "b",
        "CATEGORY_NOT_WORD": ".",
        "CATEGORY_NOT_DIGIT": "c",
    }
    if str(choices[0][0]) == "NEGATE":
        taken = {chr(a) for op, a in choices[1:] if str(op) == "LITERAL"}
        return next(c for c in "x .1a\n" if c not in taken)
    op, argument = rng.choice(choices)
    if str(op) == "LITERAL":
        return chr(argument)
    if str(op) == "RANGE":
        return chr(rng.randint(*argument))
    return known.get(str(argument), "a")


def pieces(pattern: re.Pattern[Any]) -> list[str]:
    """What is repeated."""
    rng = random.Random(repr(pattern.pattern))
    tree = parser.parse(pattern.pattern, pattern.flags)
    out = list(RUNS)
    for k in range(4):
        piece = sample(tree, rng, k % 2 == 1) or "a"
        for part in (piece, piece[:-1], piece[: max(1, len(piece) // 2)]):
            out.append(part + rng.choice(("", "\n", " ", ".")) or "a")
    return list(dict.fromkeys(out))


@functools.cache
def calls(name: str, pattern: re.Pattern[Any]) -> list[Callable[[Any], object]]:
    """How a module uses a pattern, and the others one with a public name; as they like where that
    is not plain."""
    module, _, attribute = name.rpartition(".")
    short = attribute.partition("[")[0]
    source = SOURCES[module] if short.startswith("_") else "\n".join(SOURCES.values())
    used = set(re.findall(rf"\b{short}\.(\w+)\(", source))
    known: dict[str, Callable[[Any], object]] = {
        "match": pattern.match,
        "fullmatch": pattern.fullmatch,
        "search": pattern.search,
    }
    found = [call for method, call in known.items() if method in used]
    if not used or used - known.keys():
        found.append(lambda text: sum(1 for _ in pattern.finditer(text)))
    return found


def slowest(name: str, pattern: re.Pattern[Any], size: int, limit_s: float) -> tuple[float, str]:
    """CPU seconds of the slowest text and what it repeats; the first that is over the limit."""
    worst = (0.0, "")
    for piece in pieces(pattern):
        text = (piece * (size // len(piece) + 1))[:size]
        subject: Any = text.encode("utf-8", "replace") if is_bytes(pattern) else text
        for call in calls(name, pattern):
            took = timed(call, subject)
            if took > limit_s:  # twice more: something else may have had the processor
                took = min(took, timed(call, subject), timed(call, subject))
            worst = max(worst, (took, piece))
            if took > limit_s:
                return worst
    return worst


def is_bytes(pattern: re.Pattern[Any]) -> bool:
    return isinstance(pattern.pattern, bytes)


def timed(call: Callable[[Any], object], subject: Any) -> float:
    started = time.process_time()
    call(subject)
    return time.process_time() - started


FOUND = patterns()


def test_there_are_patterns() -> None:
    assert len(FOUND) > 130


# the simulator's reading of its own request, in which our tag comes first
OURS = {"mora_data.simulator.language._PROMPT[0]"}


def check(name: str, size: int, limit_s: float) -> None:
    took, piece = slowest(name, FOUND[name], size, limit_s)
    assert took <= limit_s, f"{1000 * took:.0f} ms for {size} of {piece!r}, again and again"


@pytest.mark.parametrize("name", sorted(FOUND.keys() - OURS))
def test_no_pattern_takes_long(name: str) -> None:
    """An eighth of the size: time that grows with the square is over the limit there, too."""
    check(name, SIZE // 8, LIMIT_S / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FOUND.keys() - OURS))
def test_no_pattern_takes_long_on_64_kb(name: str) -> None:
    """The simulator reads that much of a prompt, however long it is."""
    check(name, MOST_CHARS if ".simulator." in name else SIZE, LIMIT_S)
