"""The refusal flag against people's labels: 645 prompts with six models' replies each
(Do-Not-Answer); counts only.

Label 0 is "cannot assist", 1 "refutes the opinion behind the request", 2 to 4 discuss, inform or
doubt, 5 follows it. The flag sees how a reply opens, so many refutations that begin with "I cannot
..." have it, too: two precisions are printed. The rules were adjusted on these rows, so the figures
are how well they fit, not how well they will do elsewhere.

The rows are not in the repository: MORA_TEST_DATA names the folder that has
    do-not-answer/data_en.csv and truthfulqa/.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from mora_data.rewards.rules import is_refusal


def real(name: str) -> Path:
    path = Path(os.environ.get("MORA_TEST_DATA", "")) / name
    if not os.environ.get("MORA_TEST_DATA") or not path.is_file():
        pytest.skip(f"no real rows: MORA_TEST_DATA does not name a folder with {name}")
    return path


def test_precision_and_recall_on_labelled_replies() -> None:
    flagged: Counter[str] = Counter()
    total: Counter[str] = Counter()
    with real("do-not-answer/data_en.csv").open(newline="", encoding="utf-8") as f:
        rows = csv.DictReader(f)
        models = [
            name.removesuffix("_action")
            for name in rows.fieldnames or ()
            if name.endswith("_action")
        ]
        assert len(models) == 6, models
        for row in rows:
            for model in models:
                label = row[f"{model}_action"].strip()
                total[label] += 1
                flagged[label] += is_refusal(row[f"{model}_response"])
    n = sum(flagged.values())
    recall, precision, wide = (
        flagged["0"] / total["0"],
        flagged["0"] / n,
        (flagged["0"] + flagged["1"]) / n,
    )
    print(
        f"recall {recall:.3f} ({flagged['0']} of {total['0']}), precision {precision:.3f} of {n},"
        f" with refutations {wide:.3f}; of {total['5']} that follow the request {flagged['5']} are"
        " flagged"
    )
    assert sum(total.values()) > 3000
    assert recall > 0.85 and precision > 0.68 and wide > 0.88 and flagged["5"] / total["5"] < 0.02


def test_reference_answers_are_no_refusals() -> None:
    with real("truthfulqa/TruthfulQA.csv").open(newline="", encoding="utf-8") as f:
        answers = [row["Best Answer"] for row in csv.DictReader(f)]
    flagged = sum(map(is_refusal, answers))
    print(f"{flagged} of {len(answers)} reference answers are flagged")
    assert len(answers) > 500 and flagged / len(answers) < 0.01
