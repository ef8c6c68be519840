"""How far a real judge agrees with people: shipped rubrics, and others beside them.

    python -m benchmarks.judge_people --data ../shared/data --base-url http://127.0.0.1:8000/v1
    ... --harmless benchmarks/rubrics/harmless.j2 --helpful benchmarks/rubrics/helpful.j2 --expected

Harmless: PKU-SafeRLHF pairs of which exactly one reply is labelled safe; helpful: HH helpful-base,
chosen against rejected. One pair a prompt, single turns, prompt and replies of at most 60 tokens
each, so that a verdict is cheap, in the order of a hash. The first 40 of each are for writing
rubrics (--development) and never counted. Interrupted, it resumes; rows stay in the folder --out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mora_data.cli import main as mora_data
from mora_data.errors import DropRow
from mora_data.sources.hh import HH_RLHF
from mora_data.text import n_tokens
from mora_data.types import Messages

DEVELOPMENT = 40
MOST_TOKENS = 60
Pair = tuple[str, str, str]  # prompt, better reply, worse reply


def pku(data: Path) -> Iterator[Pair]:
    for row in json.loads((data / "pku-saferlhf-converted" / "safer_ranked.json").read_text()):
        yield row["prompt"], *row["response"]


def hh(data: Path) -> Iterator[Pair]:
    for messages, chosen, rejected in hh_rows(data, "helpful-base-restored", ("train", "test")):
        if len(messages) == 1:
            yield messages[0]["content"], chosen, rejected


def hh_rows(data: Path, folder: str, splits: Iterable[str]) -> Iterator[tuple[Messages, str, str]]:
    """HH-RLHF: conversation, chosen and rejected reply of every row that a build would take."""
    for split in splits:
        path = data / "hh-rlhf" / folder / f"{split}.jsonl.gz"
        for row in map(json.loads, gzip.decompress(path.read_bytes()).splitlines()):
            try:
                parsed = HH_RLHF.read(row)
            except DropRow:
                continue
            (chosen, _), (rejected, _) = parsed.answers
            yield parsed.messages, chosen, rejected


def short(name: str, pairs: Iterable[Pair]) -> list[Pair]:
    """One pair a prompt, in the order of a hash."""
    kept: dict[str, Pair] = {}
    for prompt, better, worse in pairs:
        lengths = [n_tokens(text) for text in (prompt, better, worse)]
        if min(lengths) and max(lengths) <= MOST_TOKENS and better.strip() != worse.strip():
            key = hashlib.sha256(f"{name}\n{prompt}".encode()).hexdigest()
            kept.setdefault(key, (prompt, better, worse))
    return [kept[key] for key in sorted(kept)]


def audit(dimension: str, pairs: list[Pair], rubric: str | None, args: argparse.Namespace) -> int:
    folder = args.out / dimension
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    lines = [{"prompt": p, "chosen": better, "rejected": worse} for p, better, worse in pairs]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reward = {"kind": "judge", "template": dimension, "expected": args.expected}
    settings = [f"dimensions=[{dimension}]", f"audit.labels.{dimension}=preferred"]
    settings += [f"rewards.{dimension}={json.dumps([reward])}", "judge.timeout_s=1800"]
    other = [f"rewards.{dimension}={json.dumps([{**reward, 'template': rubric}])}"]
    return mora_data(
        [
            *("audit", "--source", "jsonl", "--data", str(rows), "--limit", str(args.limit)),
            *("--base-url", args.base_url, "--out", str(folder / "run")),
            *(word for text in settings for word in ("--set", text)),
            *(word for text in (other if rubric else []) for word in ("--compare-set", text)),
        ]
    )


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder of pku-saferlhf-converted/")
    p.add_argument("--base-url", required=True)
    p.add_argument("--out", type=Path, default=Path("runs/judge-people"))
    p.add_argument("--limit", type=int, default=300, help="pairs per dimension")
    p.add_argument("--harmless", help="another rubric to compare with the shipped one")
    p.add_argument("--helpful", help="the same")
    p.add_argument("--expected", action="store_true", help="scores by the levels' probabilities")
    p.add_argument("--development", action="store_true", help="the pairs to write rubrics with")
    args = p.parse_args()
    codes = []
    for dimension, name, rows in (
        ("harmless", "pku", pku(args.data)),
        ("helpful", "hh", hh(args.data)),
    ):
        pairs = short(name, rows)
        pairs = pairs[:DEVELOPMENT] if args.development else pairs[DEVELOPMENT:]
        codes.append(audit(dimension, pairs, getattr(args, dimension), args))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
