"""Personas: who answers which sample, what they may have of the pairs, and what of them is written
down."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mora_data.cli import main
from mora_data.errors import SettingsError
from mora_data.prompts.personas import (
    MAX_SHARE,
    Persona,
    as_persona,
    cap_shares,
    interleave,
    load_personas,
)

NAMES = ["concise", "cautious", "skeptical"]


def test_more_answers_only_append() -> None:
    def shares(n: int) -> list[list[str]]:
        return [[f"{k}:{j}" for j in range(len(range(k, n, 3)))] for k in range(3)]

    assert interleave(shares(7)) == ["0:0", "1:0", "2:0", "0:1", "1:1", "2:1", "0:2"]
    assert interleave(shares(11))[:7] == interleave(shares(7))
    assert interleave([["a", "b"]]) == ["a", "b"]


def test_a_persona_is_a_system_turn_in_front() -> None:
    user = {"role": "user", "content": "How?"}
    persona = Persona("p", "Be kind.")
    assert as_persona((user,), None) == (user,)
    assert as_persona((user,), persona) == ({"role": "system", "content": "Be kind."}, user)
    (first, last) = as_persona(({"role": "system", "content": "Rules."}, user), persona)
    assert first["content"] == "Rules.\n\nBe kind." and last == user


@pytest.mark.parametrize(
    ("names", "text", "says"),
    [
        (["concise"], None, "two or more"),
        (["concise", "concise"], None, "two or more"),
        (NAMES, 2, "rollout.n = 2"),
        (["concise", "nobody"], None, "there: cautious, concise, skeptical"),
        (["concise", "FILE"], "sys: x", "one key system"),
        (["concise", "FILE"], "a: [", "is not YAML"),
    ],
)
def test_bad_personas_are_one_line(names: list[str], text: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if isinstance(text, str):
        file.write_text(text)
    with pytest.raises(SettingsError, match=says):
        load_personas(
            [str(file) if n == "FILE" else n for n in names], text if isinstance(text, int) else 16
        )


class Pairs:
    """A partition with these pairs: (chosen, rejected) each of a prompt of its own, the first with
    the lowest score."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        n = len(pairs)
        self.number = 0
        self._columns = {
            "prompt_id": [str(i) for i in range(n)],
            "arm": ["fused"] * n,
            "rank": [0] * n,
            "chosen": [a for a, _ in pairs],
            "rejected": [b for _, b in pairs],
            "score": [float(i) for i in range(n)],
        }

    def table(self, name: str) -> pa.Table:
        assert name == "pairs"
        types = [
            ("prompt_id", pa.string()),
            ("arm", pa.string()),
            ("rank", pa.int32()),
            ("chosen", pa.int32()),
            ("rejected", pa.int32()),
            ("score", pa.float64()),
        ]
        return pa.table(self._columns, schema=pa.schema(types))


def all_chosen(pairs: list[tuple[int, int]]) -> dict[int, Any]:
    return {0: np.arange(len(pairs))}


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60))
@example([])  # a partition without a pair
def test_no_persona_has_more_than_its_share(pairs: list[tuple[int, int]]) -> None:
    chosen = all_chosen(pairs)
    shares, lost = cap_shares([Pairs(pairs)], chosen, ["fused"], NAMES)  # type: ignore[list-item]
    left = [pairs[i] for i in chosen[0].tolist()]
    assert shares["dropped"] == lost == len(pairs) - len(left)
    for side, word in enumerate(("chosen", "rejected")):
        counts = Counter(NAMES[p[side] % 3] for p in left)
        assert all(c <= MAX_SHARE * len(left) + 1e-9 for c in counts.values())
        assert shares[word] == {n: pytest.approx(counts[n] / max(len(left), 1)) for n in NAMES}


def test_the_lowest_scores_go_and_no_more_than_needed() -> None:
    pairs = [(0, 1), (0, 2), (0, 1), (0, 2), (0, 1), (1, 2), (2, 1)]  # concise: 5 of 7 chosen
    chosen = all_chosen(pairs)
    assert cap_shares([Pairs(pairs)], chosen, ["fused"], NAMES)[0]["dropped"] == 2  # type: ignore[list-item]
    assert chosen[0].tolist() == [2, 3, 4, 5, 6]


def test_a_build_with_personas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "build",
        "--source",
        "jsonl",
        "--sample",
        "--out",
        str(tmp_path / "run"),
        "--limit",
        "12",
        "--set",
        "presample.n=[4]",
        "--set",
        f"rollout.personas=[{', '.join(NAMES)}]",
        "--json",
    ]
    assert main([*args, "--set", "rollout.n=9"]) == 0
    first = json.loads(capsys.readouterr().out)
    table = pq.read_table(tmp_path / "run/parts/00000/rollouts.parquet").to_pylist()
    mine = [r for r in table if r["arm"] == "fused"]
    assert (
        all(r["persona"] == NAMES[r["index"] % 3] for r in mine)
        and len(mine) == 9 * first["counts"]["fuse"]["kept"]
    )
    assert {r["persona"] for r in table if r["arm"] == "presample"} == {None}
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert (
        set(manifest["personas"]["chosen"]) == set(NAMES)
        and max(manifest["personas"]["chosen"].values()) <= MAX_SHARE
    )
    assert {f"personas/{n}" for n in NAMES} <= set(manifest["templates"])
    select = manifest["counts"]["select"]
    assert (
        select["in"] == select["kept"] + sum(select["dropped"].values())
        and select["kept"] == first["pairs"] > 0
    )
    for file in (tmp_path / "run/dataset").rglob("*.parquet"):
        prompts = pq.read_table(file, columns=["prompt"]).column("prompt").to_pylist()
        assert all(m["role"] != "system" for p in prompts for m in p), file
    assert main([*args, "--set", "rollout.n=12"]) == 0
    more = json.loads(capsys.readouterr().out)
    again = {
        (r["prompt_id"], r["index"]): r["text"]
        for r in pq.read_table(tmp_path / "run/parts/00000/rollouts.parquet").to_pylist()
        if r["arm"] == "fused"
    }
    assert {
        (r["prompt_id"], r["index"]): r["text"] for r in mine
    }.items() <= again.items() and more["replayed"] > 0
