"""A run's prompts outside the viewer: as rows, as lines for a terminal, and as a page.

prompt_rows(run_dir)                one row per prompt and arm: its rewrite, or why there is none
stories(run_dir)                    everything of each prompt; for a few of them
story_lines(story, dims)            as text
prompts_html(run_dir)               a page in one file; `fragment` of it for a notebook
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..report.markup import environment, render
from ..report.page import style_sheet
from ..run import StageCounts
from ..run.folder import finished_parts, parts_of
from ..run.partitions import Partition, last_tries, row_tuples
from ..secrets import visible
from ..text import one_line, transcript
from ..types import may_harm
from .folder import ViewedFolder, open_folder
from .prompts import word_diff
from .provenance import PromptArm, PromptProvenance, ScoredAnswer, read_provenance

ANSWER_CHARS = 240  # of an answer on the terminal
ROWS = 20  # that a notebook shows of a table
UNTRIED: tuple[Any, ...] = (-1, None, False, [], [])  # attempt, text, accepted, failed, checks
MOST_STORIES = 20  # prompts that a notebook shows whole


def prompt_rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each prompt of the finished partitions and each arm that rewrote it, in order; one
    without an arm where none did.

    `rewrite` is what was accepted, else None; `failed` has the checks that the last try failed.
    """
    for part in finished_parts(run_dir):
        yield from _rows_of_part(part)


def _rows_of_part(part: Partition) -> Iterator[dict[str, Any]]:
    about = ("prompt_id", "kind", "carried_dim", "target_dims")
    profiles = {row[0]: row for row in row_tuples(part.table("profiles", about), *about)}
    names = ("attempt", "text", "accepted", "failed", "checks")
    table = part.table("fusions", ("prompt_id", "arm", *names))
    rows = list(row_tuples(table, *names))
    tries: dict[str, list[tuple[str | None, tuple[Any, ...]]]] = defaultdict(list)
    for (prompt_id, arm), i in last_tries(table).items():
        tries[prompt_id].append((arm, rows[i]))
    for prompt in part.prompts():
        for name, last in tries.get(prompt.prompt_id) or [(None, UNTRIED)]:
            attempt, text, accepted, failed, checks = last
            yield {
                **dict(
                    zip(about, profiles.get(prompt.prompt_id, [prompt.prompt_id]), strict=False)
                ),
                "source_prompt": transcript(prompt.messages),
                "source_row": prompt.source_row,
                "category": prompt.category,
                "arm": name,
                "rewrite": text if accepted else None,
                "tries": attempt + 1,
                "failed": list(failed),
                "checks": checks,
            }


def stories(run_dir: Path) -> tuple[ViewedFolder, list[PromptProvenance]]:
    """The run, and everything of each of its prompts, in order."""
    folder = open_folder(run_dir)
    ids = [p.prompt_id for part in folder.partitions() for p in part.prompts()]
    found = (read_provenance(folder, i, []) for i in ids)
    return folder, [story for story in found if story is not None]


def story_lines(story: PromptProvenance, dims: Sequence[str]) -> list[str]:
    """One prompt as text: its source, its rewrite with the new words in {+ +}, the checks, the
    answers with their scores, the best pair."""
    source = transcript(story.messages)
    lines = _labelled("source", source)
    profile = story.profile or {}
    if targets := profile.get("target_dims"):
        kept = f", carries {profile['carried_dim']}" if profile.get("carried_dim") else ""
        kind = f" (kind {profile['kind']}{kept})" if profile.get("kind") != "plain" else ""
        lines += _labelled("adds", ", ".join(targets) + kind)
    elif profile.get("kind"):
        lines += _labelled("kind", profile["kind"])
    for t in story.tries:
        about = f"try {t['attempt'] + 1}" if len(story.tries) > 1 else ""
        label = t["arm"] if t["accepted"] else "refused"
        lines += _labelled(label, _marked(story, t["text"]))
        lines += _labelled("checks", " ".join([about, _checks_line(t)]).strip())
    answered = [arm for arm in story.arms if arm.answers]
    for arm in answered:
        lines += _arm_lines(arm, "answer" if len(answered) == 1 else arm.name, dims)
    lines += [
        line for e in story.errors[:3] for line in _labelled("failed", one_line(e["error"], 200))
    ]
    return lines + (_labelled("note", story.note) if story.note else [])


def _labelled(label: str, text: str) -> list[str]:
    wrapped = [w for part in text.splitlines() or [""] for w in textwrap.wrap(part, 88) or [""]]
    return [f"{label if not i else '':<9} {line}".rstrip() for i, line in enumerate(wrapped)]


def _marked(story: PromptProvenance, rewrite: str) -> str:
    pieces = word_diff(story.messages[-1]["content"], rewrite)
    if len(pieces) == 1:
        return rewrite
    return " ".join(f"{{+{t.strip()}+}}" if new else t.strip() for t, new in pieces)


def _checks_line(tried: Mapping[str, Any]) -> str:
    """Failed checks first, each with its value; then those that passed."""

    def shown(check: Mapping[str, Any]) -> str:
        value = check["value"]
        return str(check["name"]) + (f" {value:.3g}" if value not in (None, 0, 1) else "")

    failed = [shown(c) for c in tried["checks"] if not c["passed"]]
    passed = [shown(c) for c in tried["checks"] if c["passed"]]
    return "; ".join(
        [
            *([f"FAILED {', '.join(failed)}"] if failed else []),
            *([f"passed {', '.join(passed)}"] if passed else []),
        ]
    )


def _arm_lines(arm: PromptArm, label: str, dims: Sequence[str]) -> list[str]:
    best = arm.candidates[0] if arm.candidates else None
    marks = {best["rejected"]: "rejected", best["chosen"]: "CHOSEN"} if best else {}
    lines = []
    for a in arm.answers:
        scores = "  ".join(f"{d} {_score(a.rewards[d])}" for d in dims)
        flags = f"  [{', '.join(a.flags)}]" if a.flags else ""
        lines += _labelled(f"{label} {a.index}", f"{scores}{flags}  {marks.get(a.index, '')}")
        said = f"failed: {a.error}" if a.error is not None else a.text
        lines += _labelled("", one_line(said, ANSWER_CHARS))
    if best is None:
        scored = sum(None not in a.rewards.values() for a in arm.answers)
        few = f"only {scored} of {len(arm.answers)} answers has all scores"
        why = few if scored == 1 else "no answer is better than another"
        return lines + (_labelled("pair", f"none: {why}") if scored else [])
    margins = ", ".join(
        f"{d} {best['margins'][d]:+.2f}" for d in dims if best["margins"][d] is not None
    )
    return lines + _labelled("pair", f"{best['chosen']} over {best['rejected']}: {margins}")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def prompts_html(run_dir: Path, title: str) -> str:
    """A page in one file with every prompt of a small run; texts that may be harmful are folded."""
    return render(
        "report/prompts.html", title=title, css=Markup(style_sheet()), prompts=fragment(run_dir)
    )


def fragment(run_dir: Path) -> Markup:
    """The prompts of a run as HTML, for a page or a notebook; `MOST_STORIES` at most."""
    folder, found = stories(run_dir)
    floor = folder.floors.get("harmless")
    first = found[:MOST_STORIES]

    def folds(answer: ScoredAnswer) -> bool:
        return "harmless" in folder.dims and may_harm(
            0.75 if floor is None else floor, answer.rewards.get("harmless")
        )

    template = environment().get_template("report/prompt_stories.html")
    page = template.render(
        stories=first,
        more=len(found) - len(first),
        dims=folder.dims,
        may_harm=folds,
        rewrite_diff=lambda story, text: word_diff(story.messages[-1]["content"], text),
    )
    return Markup(page)


def run_fragment(run_dir: Path, counts: Mapping[str, StageCounts]) -> Markup:
    """A run for a notebook: its counts, and the prompts of one that has few."""
    rows = [
        {"stage": stage, "in": c["in"], "kept": c["kept"], "dropped": dict(c["dropped"])}
        for stage, c in counts.items()
    ]
    head = Markup("<p>{}</p>").format(visible(str(run_dir)))
    few = 0 < sum(p.n_prompts() for p in parts_of(run_dir)) <= MOST_STORIES
    return head + rows_fragment(rows) + (fragment(run_dir) if few else Markup())


def rows_fragment(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """The first rows as a table for a notebook, each value on one line, cut and escaped."""
    head = list(rows[0]) if rows else []
    cells = [[value if (value := r.get(k)) is not None else "" for k in head] for r in rows[:ROWS]]
    table = environment().get_template("report/parts.html").module.table(head, cells, "rows")  # type: ignore[attr-defined]
    more = Markup("<p>{} of {} rows</p>").format(min(len(rows), ROWS), len(rows))
    return Markup(table) + more
