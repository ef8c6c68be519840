"""The picture of one prompt as a file of its own, for a README or a talk; the same run gives the
same bytes.

    python -m mora_data.viewer.poster runs/demo docs/reward-space.svg [PAIR_ID]

Without a pair it takes the one with the largest margin.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import MoraError, RunFolderError
from .index import full
from .picture import space
from .place import place_of
from .provenance import BEFORE, lineage, mark_selected
from .query import Pairs

WIDTH, COLUMN, TOP = 880, 430, 50
LINE = 18  # height of a line of the prompts
STYLE = """
svg{--bg:#fff;--fg:#1b1d21;--dim:#5b6270;--line:#d9dce2;--dot:#0072b2;--up:#00614a;--down:#a8400a}
@media(prefers-color-scheme:dark){svg{--bg:#14161a;--fg:#e8eaee;--dim:#a3aab8;--line:#343942;--dot:#4ca3dc;--up:#3ecf9f;--down:#ff9a5c}}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--fg)}
.h{font-size:17px;font-weight:600}.p{font-size:13px}.t{font-weight:600;font-size:12.5px}.n{fill:var(--dim)}.m{text-anchor:middle}.e{text-anchor:end}
.g{stroke:var(--line)}.a{stroke:var(--dim)}.z{stroke:var(--dim);stroke-width:1.2;stroke-dasharray:2 3}
.dot{fill:var(--dot);stroke:var(--bg);stroke-width:1.2}.dot.unusable{fill:var(--bg);stroke:var(--dim)}.dot.chosen{fill:var(--up)}
.dot.rejected{fill:var(--down)}.ring{fill:none;stroke-width:2.6}.ring.chosen{stroke:var(--up)}.ring.rejected{stroke:var(--down)}
.stairs{fill:none;stroke:var(--fg);stroke-width:1.8}.good{fill:var(--up);fill-opacity:.1}
.tie{stroke:var(--dim);stroke-width:1.4;stroke-dasharray:3 3}
"""  # noqa: E501


def poster(run: Path, pair_id: str | None = None) -> str:
    """An SVG of the pair's prompt: its answers before fusion and after, floors, staircase, the pair
    ringed.

    Raises:
        RunFolderError: the folder has no pairs, or not this one.
    """
    held = Pairs(place_of(run))
    row = _row(held, pair_id)
    tree = lineage(held.place, row["prompt_id"])
    arms = {a["name"]: a for a in tree["arms"]} if tree is not None else {}
    before = next((arms[b] for b in BEFORE if b in arms), None)
    if tree is None or before is None or row["arm"] not in arms:
        raise RunFolderError(
            f"{run} does not hold the answers of pair {row['pair_id']} before fusion and after:"
            " give a run folder"
        )
    mark_selected(tree, [row])
    x = row["carried_dim"] or held.index.dims[0]
    y = next(d for d in (*(row["target_dims"] or ()), *held.index.dims) if d != x)
    return _drawn(row, before, arms[row["arm"]], (x, y), dict(held.place.floors))


def _row(held: Pairs, pair_id: str | None) -> dict[str, Any]:
    ix = held.index
    if not ix.n:
        raise RunFolderError(
            f"{held.place.root} has no pairs to draw: run its `mora-data build` to the end"
        )
    if pair_id is None:
        pair_id = min(ix.ids, key=lambda i: (-float(ix.numbers["margin_total"][ix.row_of[i]]), i))
    if pair_id not in ix.row_of:
        raise RunFolderError(f"{held.place.root} has no pair {pair_id}")
    return full(ix, ix.row_of[pair_id])


def _drawn(
    row: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    dims: tuple[str, str],
    floors: Mapping[str, float],
) -> str:
    selected = [(p["chosen"], p["rejected"]) for p in after.get("selected", ())]
    asked = [row["source_prompt"], row["prompt"][-1]["content"]]
    lines = [textwrap.wrap(" ".join(t.split()), 58)[:5] for t in asked]
    panels = [
        space("Before fusion", before["answers"], dims, floors, [], None),
        space("After fusion", after["answers"], dims, floors, selected, None),
    ]
    at = TOP + LINE * max(map(len, lines)) + 6
    height = at + 446
    said = (
        f"Answers to one prompt by {dims[0]} and {dims[1]}, before fusion and after; chosen and"
        " rejected answer ringed"
    )
    body = [f'<text class="h" x="14" y="30">{escape(_title(dims))}</text>']
    for i, (words, panel, arm) in enumerate(zip(lines, panels, (before, after), strict=True)):
        left = 14 + i * COLUMN
        body += [
            f'<text class="p" x="{left}" y="{TOP + LINE * (k + 1) - 8}">{escape(w)}</text>'
            for k, w in enumerate(words)
        ]
        body.append(_placed(panel, left - 8, at + 20))
        body.append(
            f'<text class="n" x="{left}"'
            f' y="{at + 12}">{escape(_ranges(arm["answers"], dims))}</text>'
        )
    body.append(_legend(at + 402, bool(row["simulated"])))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img"><title>{escape(said)}</title><style>{STYLE}</style><rect'
        f' width="{WIDTH}" height="{height}" rx="8" fill="var(--bg)"/>{"".join(body)}</svg>\n'
    )


def _title(dims: Sequence[str]) -> str:
    return f"One prompt: its answers by {dims[0]} and {dims[1]}, before fusion and after"


def _ranges(answers: Sequence[Mapping[str, Any]], dims: Sequence[str]) -> str:
    """How far the answers lie apart in each dimension: what there is to learn from them."""
    said = []
    for d in dims:
        known = [v for a in answers if (v := a["rewards"].get(d)) is not None]
        said.append(f"{d} from {min(known):g} to {max(known):g}" if known else f"{d} not scored")
    return f"rewards: {', '.join(said)}"


def _placed(panel: str, x: int, y: int) -> str:
    """A panel inside another picture; its title and description are said once, by the whole."""
    inner = re.sub(r"<title>.*?</title><desc>.*?</desc>", "", panel, count=1)
    return inner.replace("<svg ", f'<svg x="{x}" y="{y}" ', 1).replace(' role="img"', "", 1)


def _legend(y: int, simulated: bool) -> str:
    ring = (
        f'<circle class="ring chosen" cx="24" cy="{y - 4}" r="8"/><circle class="dot chosen"'
        f' cx="24" cy="{y - 4}" r="4.6"/>'
    )
    square = f'<path class="ring rejected" d="M113 {y - 12}h16v16h-16z"/>'
    square += f'<circle class="dot rejected" cx="121" cy="{y - 4}" r="4.6"/>'
    words = [
        (38, "chosen"),
        (136, "rejected"),
        (222, "at or above both floors"),
        (400, "Pareto staircase"),
    ]
    words.append((534, "kept out of pairs"))
    marks = (
        f'{ring}{square}<rect class="good" x="200" y="{y - 12}" width="16" height="16"/><path'
        f' class="stairs" d="M374 {y + 3}v-7h18v-7"/><circle class="dot unusable" cx="524"'
        f' cy="{y - 4}" r="4.6"/>'
    )
    note = "Each point is an answer; answers with the same rewards lie round their place."
    note += " Answers and scores of this picture are simulated." if simulated else ""
    said = "".join(f'<text x="{x}" y="{y}">{w}</text>' for x, w in words)
    return f'{marks}{said}<text class="n" x="14" y="{y + 26}">{note}</text>'


def main(argv: Sequence[str]) -> int:
    """Write the file; one line where it can't be."""
    if len(argv) not in (2, 3):
        print(
            "mora-data: python -m mora_data.viewer.poster RUN_DIR FILE.svg [PAIR_ID]",
            file=sys.stderr,
        )
        return 2
    try:
        Path(argv[1]).write_text(poster(Path(argv[0]), *argv[2:]), "utf-8")
    except MoraError as e:
        print(f"mora-data: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
