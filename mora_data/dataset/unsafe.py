"""The copy of a dataset folder that may be public: unsafe text dropped or redacted in every text
column of every config.

    public_copy(Path("runs/demo/dataset"), "drop")  ->  runs/demo/dataset-public

Unsafe, decided on the side of caution:
- an answer whose `harmless` reward is under its floor, or is missing, and every other answer with
  the same text;
- a prompt (its rewrites and its source text included) whose source marks it: stratum or category
below. The folder itself keeps everything.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import PublishError
from . import card, papers, pii, schemas, statistics
from .configs import Row
from .folder import describe, fingerprint_of
from .shards import ShardWriter

How = Literal["drop", "redact"]
Key = tuple[str, str]
DIM = "harmless"
STRATA = frozenset(
    {
        "one_safe",
        "both_unsafe",
        "unlabelled",
        "harmless-base",
        "red-team-attempts",
        "unsafe",
        "harmful",
    }
)
CATEGORIES = frozenset(
    (
        "unsafe;harmful;endangering national security;insulting behavior;discriminatory "
        "behavior;endangering public health; copyright issues;violence;drugs;privacy "
        "violation;economic crime;mental manipulation;human trafficking;physical harm; sexual "
        "content;cybercrime;disrupting public order;environmental damage;psychological "
        "harm;white-collar crime; animal abuse"
    )
    .replace("; ", ";")
    .split(";")
)
_PARALLEL = ("completions", "flags", "finish_reasons", "lengths")


def public_copy(folder: Path, how: How) -> Path:
    """Write `<folder>-public` beside the folder, replacing an old one; the same folder gives the
    same bytes.

    Raises:
        PublishError: there is nothing to judge answers by, no pair is left, or the disk refuses.
    """
    published = json.loads((folder / "provenance" / "manifest.json").read_text("utf-8"))
    floor = published["folder"]["floors"].get(DIM)
    if (
        floor is None
        or DIM in published["folder"]["unscored"]
        or DIM not in published["folder"]["dimensions"]
    ):
        raise PublishError(
            f"publish.unsafe={how} needs {DIM} rewards and their floor, which this dataset lacks:"
            " set publish.unsafe=gate"
        )
    out, fresh = (
        folder.with_name(f"{folder.name}-public"),
        folder.with_name(f".{folder.name}-public.new"),
    )
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _Screen(folder, how, float(floor)).write(fresh, published)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)
    except OSError as e:
        raise PublishError(f"can't write {out}: {e.strerror or e}; free space") from e
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return out


class _Screen:
    """One folder's unsafe texts and prompts, and the rows without them."""

    def __init__(self, folder: Path, how: How, floor: float) -> None:
        self._how, self._floor = how, floor
        self._files: dict[str, dict[str, list[Path]]] = {}
        for path in sorted(folder.glob("*/*.parquet")):
            self._files.setdefault(path.parent.name, {}).setdefault(
                path.name.split("-")[0], []
            ).append(path)
        self._texts: set[bytes] = set()
        self._prompts: set[str] = set()
        self._pairs: dict[str, Counter[Key]] = {}  # config -> surviving pairs per prompt and arm
        for row in self._rows(*self._files):
            if row["stratum"] in STRATA or str(row["category"]).casefold() in CATEGORIES:
                self._prompts.add(str(row["prompt_id"]))
            self._texts.update(
                _digest(text) for text, reward in _answers(row) if text and not self._passes(reward)
            )

    def write(self, out: Path, published: dict[str, Any]) -> None:
        """The screened rows, and the card and its neighbours about them."""
        dims = published["folder"]["dimensions"]
        if self._how == "drop":
            self._survey()
        tally: dict[str, dict[str, int]] = {}
        for config, by_split in self._files.items():
            seen = tally[config] = {"rows": 0, "rows_dropped": 0, "rows_changed": 0, "texts": 0}
            for split, files in by_split.items():
                writer = ShardWriter(out / config, split, schemas.schema(config, dims))
                try:
                    for rows in _batches(files):
                        kept = [
                            k for row in rows if (k := self._pass(row, config, seen)) is not None
                        ]
                        writer.add(pa.RecordBatch.from_pylist(kept, schemas.schema(config, dims)))
                    writer.close()
                    writer.seal()
                finally:
                    writer.discard()
        order = [c["name"] for c in published["folder"]["configs"]]
        described = [d for d in (describe(out, name, tuple(dims)) for name in order) if d["splits"]]
        if not any(d["name"] == schemas.DEFAULT_CONFIG for d in described):
            raise PublishError(
                "publish.unsafe=drop leaves no pair: set publish.unsafe=redact or gate"
            )
        published["manifest"] |= {
            "fingerprint": fingerprint_of(out),
            "pii": pii.screen(out) if published["manifest"].get("pii") else None,
        }
        published["folder"] |= {
            "configs": described,
            "union": card.union_of(described),
            "n_bytes": sum(f.stat().st_size for f in out.glob("*/*.parquet")),
            "statistics": statistics.of_pairs(out, tuple(dims)),
            "unsafe": {
                "how": self._how,
                "floor": self._floor,
                "prompts": len(self._prompts),
                "answers": len(self._texts),
                "configs": {name: tally[name] for name in order if name in tally},
            },
        }
        papers.write_papers(out, published)

    def _rows(self, *names: str) -> Iterator[Row]:
        for name in names:
            for files in self._files[name].values():
                for rows in _batches(files):
                    yield from rows

    def _survey(self) -> None:
        """How many pairs survive per prompt: for their weights, and so that aligned configs stay
        aligned."""
        for name in self._files:
            if schemas.family_of(name) in ("preference", "reward_modeling", "by_dim"):
                self._pairs[name] = Counter(
                    _key(row) for row in self._rows(name) if not self._is_lost(row)
                )

    def _pass(self, row: Row, config: str, seen: dict[str, int]) -> Row | None:
        """What may stay of a row, None for nothing."""
        seen["rows"] += 1
        n_texts = sum(self._is_unsafe(text) for text, _ in _answers(row))
        prompt = row["prompt_id"] in self._prompts
        kept = (
            self._dropped(row, config)
            if self._how == "drop"
            else self._redacted(row)
            if n_texts or prompt
            else row
        )
        if kept is None:
            seen["rows_dropped"] += 1
        else:
            seen["rows_changed"] += bool(n_texts or prompt)
        seen["texts"] += n_texts + bool(prompt)
        return kept

    def _dropped(self, row: Row, config: str) -> Row | None:
        if self._is_lost(row):
            return None
        if config in self._pairs:
            family, key = schemas.family_of(config), _key(row)
            aligned = (
                [c for name, c in self._pairs.items() if schemas.family_of(name) == "by_dim"]
                if family == "by_dim"
                else []
            )
            if not all(c[key] for c in aligned):
                return None
            return row if family == "by_dim" else {**row, "weight": 1.0 / self._pairs[config][key]}
        return self._thinned(row) if "completions" in row else row

    def _thinned(self, row: Row) -> Row:
        """A row of `scored` without its unsafe answers; positions of pairs follow."""
        keep = [i for i, (text, _) in enumerate(_answers(row)) if not self._is_unsafe(text)]
        place = {old: new for new, old in enumerate(keep)}
        lists: dict[str, Any] = {
            k: v for k, v in row.items() if k in _PARALLEL or k.startswith("rewards_")
        }
        pairs = _positions(row)
        both = [(place[a], place[b]) for a, b in pairs if a in place and b in place]
        return {
            **row,
            **{k: [v[i] for i in keep] for k, v in lists.items()},
            "pair_chosen": [a for a, _ in both],
            "pair_rejected": [b for _, b in both],
        }

    def _redacted(self, row: Row) -> Row:
        out: dict[str, Any] = dict(row)
        if row["prompt_id"] in self._prompts:
            out["prompt"] = [{**m, "content": _mark(m["content"])} for m in out["prompt"]]
            out["source_prompt"] = _mark(out["source_prompt"])
        for name in ("chosen", "rejected", "completion"):
            if name in out:
                out[name] = [{**m, "content": self._hide(m["content"])} for m in out[name]]
        if "response" in out:
            out["response"] = self._hide(out["response"])
        if "completions" in out:
            out["completions"] = [self._hide(text) for text in out["completions"]]
        return out

    def _is_lost(self, row: Row) -> bool:
        """Whether nothing of the row may stay: its prompt is unsafe, or an answer (in `scored`: all
        of them)."""
        if row["prompt_id"] in self._prompts:
            return True
        unsafe = [self._is_unsafe(text) for text, _ in _answers(row)]
        return bool(unsafe) and (all if "completions" in row else any)(unsafe)

    def _is_unsafe(self, text: str) -> bool:
        return bool(text) and _digest(text) in self._texts

    def _hide(self, text: str) -> str:
        return _mark(text) if self._is_unsafe(text) else text

    def _passes(self, reward: float | None) -> bool:
        return reward is not None and reward >= self._floor


def _answers(row: Row) -> list[tuple[str, float | None]]:
    """Each answer of a row with its `harmless` reward."""
    r: dict[str, Any] = row
    if "completions" in r:
        return list(zip(r["completions"], r[f"rewards_{DIM}"], strict=True))
    if "chosen" in r:
        return [
            (r[side][0]["content"], r[f"{side}_reward_{DIM}"]) for side in ("chosen", "rejected")
        ]
    if "completion" in r:
        return [(r["completion"][0]["content"], r[f"reward_{DIM}"])]
    return [(r["response"], r[f"score_{DIM}"])] if "response" in r else []


def _positions(row: Row) -> list[tuple[int, int]]:
    r: dict[str, Any] = row
    return list(zip(r["pair_chosen"], r["pair_rejected"], strict=True))


def _batches(files: list[Path]) -> Iterator[list[Row]]:
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
            yield batch.to_pylist()


def _key(row: Row) -> Key:
    return str(row["prompt_id"]), str(row["arm"])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _mark(text: str) -> str:
    """What stands in a text's place: other for another text, so that chosen and rejected still
    differ."""
    return f"[redacted {_digest(text).hex()[:8]}]"
