"""Mini-MORA's own code: which pairs a selector takes, what is trained on, the intervals of the
report. No model is trained here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.mini_mora.report import ORDERS, done, gap, report
from benchmarks.mini_mora.scale import FORMS, SCALES, without_skill
from benchmarks.mini_mora.world import DIMENSIONS, OWN, Ask, Topic, compose, question, skilled

if TYPE_CHECKING:
    from benchmarks.mini_mora import __main__ as experiment
    from benchmarks.mini_mora.lab import Lab

SPLITS = SCALES["cpu"].splits()
DANGEROUS = next(t for t in SPLITS["pool"] if t.hazard)


@pytest.fixture(scope="module")
def torch() -> None:
    """torch takes two seconds to import: here, and not in every process that lists the tests."""
    global experiment, Lab
    pytest.importorskip("torch", reason="needs torch: pip install 'mora-data[train]'")
    from benchmarks.mini_mora import __main__ as experiment
    from benchmarks.mini_mora.lab import Lab


def lab_of(asked: list[tuple[Topic, Ask, str]], answers: list[list[str]]) -> Lab:
    """A lab whose base policy gave these answers; nothing is trained or loaded."""
    lab = Lab.__new__(Lab)
    lab.scale, lab.q, lab.seed = SCALES["cpu"], 0.1, 0
    lab.pool = lambda arm: asked  # type: ignore[method-assign]
    lab.answered = lambda arm, n: (asked, answers)  # type: ignore[method-assign]
    return lab


def test_what_each_selector_takes_of_answers_with_and_without_the_caution(torch: None) -> None:
    asked = [(DANGEROUS, Ask("H"), question(DANGEROUS, Ask("H")))]
    careless, careful, wrong = (
        compose(DANGEROUS, parts) for parts in (["use", "steps"], ["use", "steps", "caution"], [])
    )
    lab = lab_of(asked, [[careless, careful, careless, wrong]])
    only = lab_of(asked, [[careless, careful]])
    taken = {s: [(p.chosen, p.rejected) for p in only.pairs("plain", s)] for s in DIMENSIONS}
    assert taken == {"helpful": [], "harmless": [(careful, careless)], "truthful": []}
    # what `dominance_hv` loses on plain questions: a gain in a dimension that nobody asked for
    assert not only.pairs("plain", "dominance_hv")
    assert [p.margins for p in only.pairs("plain")] == [(0.0, 0.5, 0.0)]
    assert {p.chosen for p in lab.pairs("plain")} == {careful}
    assert all(min(p.margins) >= 0 for p in lab.pairs("plain"))
    # free of floors and losses, the sum may prefer what the others refuse
    assert [p.chosen for p in lab.pairs("plain", "sum", each=1)] == [careful]


def test_a_method_has_all_the_pairs_that_it_names_or_is_not_run(
    torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [(DANGEROUS, Ask("H"), question(DANGEROUS, Ask("H")))]
    lab = lab_of(asked, [[compose(DANGEROUS, ["use", "steps", *c]) for c in ([], ["caution"])]])
    assert len(experiment.METHODS["plain+fused"](lab, 1)) == 2
    halves = experiment.reattached(experiment.first(lab, 1) * 4, 2)
    assert [p.prompt == p.plain for p in halves] == [True] * 4
    lab.tested = lambda model, form, topics: {"joint": form}  # type: ignore[method-assign,assignment]
    table = tmp_path / "toy.csv"

    def few() -> Any:
        return experiment.first(lab, 2), 1, 1

    experiment.write(lab, "plain", 2, few, table)
    assert "not run, plain under dominance has 1 pairs, 2 are wanted" in capsys.readouterr().err
    assert done(table) == []
    experiment.write(lab, "plain", 1, lambda: (None, 4, 1), table)
    experiment.write(lab, "plain", 1, few, table)  # there already, so not computed again
    assert [(r["form"], r["joint"], r["steps"]) for r in done(table)] == [
        (f, f, "4") for f in FORMS
    ]
    # at another learning rate it is another method
    lab.scale, lab.base = replace(lab.scale, n=1), None
    lab.dpo = lambda start, pairs, steps, rate: None  # type: ignore[method-assign]
    experiment.run(lab, "generic", 1e-3, table)
    experiment.run(lab, "generic", lab.scale.rate, table)
    names = [r["method"] for r in done(table)[::3]]
    assert names == ["plain", "base", "plain+generic at 0.001", "plain+generic"]


def rows_of(joint: dict[str, int], seeds: int = 3) -> list[dict[str, str]]:
    """Rows of methods that passed so many of the four answers to every second topic's questions."""
    return [
        {"q": "0.1", "seed": str(s), "method": m, "n": "300", "form": "plain"}
        | {"joint_by_topic": f"{k}{s % 2}" * 20}
        for m, k in joint.items()
        for s in range(seeds)
    ]


def test_a_difference_is_paired_by_seed_and_topic_and_taken_over_all_orders() -> None:
    found = gap(rows_of({"a": 2, "b": 1}), [("a", "b")], "300", "plain", "0.1")
    assert found is not None and found["by_seed"] == [0.125] * 3
    assert found["value"] == pytest.approx(0.125) and found["interval"][0] > 0 > -found["p"]
    both = [(f"mora: {o}", f"alone: {o}") for o in ORDERS]
    joint = {x: int(x.startswith("mora")) + (i % 2) for i, ab in enumerate(both) for x in ab}
    rows = rows_of(joint)
    found = gap(rows, both, "300", "plain", "0.1")
    assert found is not None and found["value"] == pytest.approx(0.125) and found["seeds"] == 3
    # a seed that lacks one order is left out, and no mean of fewer is taken
    some = [r for r in rows if (r["seed"], r["method"]) != ("1", both[4][0])]
    found = gap(some, both, "300", "plain", "0.1")
    assert found is not None and found["seeds"] == 2
    assert gap(some[:4], both, "300", "plain", "0.1") is None


def test_the_recorded_results_have_their_tables() -> None:
    lines = list(report(Path(experiment_folder(), "results", "cpu.csv")))
    assert any(
        x.startswith("| plain+fused - plain | 300 | 0.1 | plain | 5 | -0.028 |") for x in lines
    )


def experiment_folder() -> Path:
    return Path(__file__).parents[2] / "benchmarks" / "mini_mora"


def test_questions_of_the_test_are_of_test_topics_and_dev_topics_have_no_skill() -> None:
    for name, scale in SCALES.items():
        splits = scale.splits()
        names = [t.name for some in splits.values() for t in some]
        assert len(names) == len(set(names)) == sum(scale.n_topics), name
        assert not any(skilled(t, 0.1, 0) for t in without_skill(splits["train"], 60, 0.1))
    assert set(OWN.values()) == set(DIMENSIONS)
