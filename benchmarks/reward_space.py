"""The reward space of one prompt as a file of its own, for the README or a talk; the same run gives
the same bytes.

    python -m benchmarks.reward_space runs/demo docs/reward-space.svg [PAIR_ID]

Without a pair it takes the one with the largest margin.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

from markupsafe import Markup

from mora_data.errors import MoraError, RunFolderError
from mora_data.report.markup import environment
from mora_data.viewer.folder import PairRow, open_folder, read_pair
from mora_data.viewer.pairs import PairSearch
from mora_data.viewer.pictures import Plane, reward_space
from mora_data.viewer.provenance import BEFORE, ScoredAnswer, read_provenance

WIDTH, COLUMN, TOP = 880, 430, 50  # of the picture of one prompt
LINE = 18  # height of a line of the prompts


def draw(run: Path, pair_id: str | None = None) -> str:
    """An SVG of the pair's prompt: its answers before fusion and after it, thresholds, staircase,
    the pair ringed.

    Raises:
        RunFolderError: the folder has no pairs, or not this one.
    """
    pairs = PairSearch(open_folder(run))
    row = _pair_to_draw(pairs, pair_id)
    prompt = read_provenance(pairs.folder, row["prompt_id"], [row])
    arms = {arm.name: arm for arm in prompt.arms} if prompt is not None else {}
    before = next((arms[b] for b in BEFORE if b in arms), None)
    if before is None or row["arm"] not in arms:
        raise RunFolderError(
            f"{run} does not hold the answers of pair {row['pair_id']} before fusion and after:"
            " give a run folder"
        )
    after, dims = arms[row["arm"]], pairs.index.dims
    x = row["carried_dim"] or dims[0]
    plane = (x, next(d for d in (*(row["target_dims"] or ()), *dims) if d != x))
    selected = [(p["chosen"], p["rejected"]) for p in after.selected]
    prompts = [row["source_prompt"], row["prompt"][-1]["content"]]
    lines = [textwrap.wrap(" ".join(t.split()), 58)[:5] for t in prompts]
    floors = pairs.folder.floors
    panels = [
        reward_space("Before fusion", before.answers, plane, floors, [], None),
        reward_space("After fusion", after.answers, plane, floors, selected, None),
    ]
    at = TOP + LINE * max(map(len, lines)) + 6
    body = []
    for i, (words, drawn, arm) in enumerate(zip(lines, panels, (before, after), strict=True)):
        left = 14 + i * COLUMN
        body += [
            f'<text class="p" x="{left}" y="{TOP + LINE * (k + 1) - 8}">{escape(w)}</text>'
            for k, w in enumerate(words)
        ]
        body.append(_nested(drawn, left - 8, at + 20))
        ranges = escape(_ranges(arm.answers, plane))
        body.append(f'<text class="n" x="{left}" y="{at + 12}">{ranges}</text>')
    template = environment().from_string(Path(__file__).with_suffix(".svg").read_text("utf-8"))
    return template.render(
        plane=plane,
        width=WIDTH,
        height=at + 446,
        body=Markup("".join(body)),
        legend=at + 402,
        simulated=bool(row["simulated"]),
    )


def _pair_to_draw(pairs: PairSearch, pair_id: str | None) -> PairRow:
    ix = pairs.index
    if not ix.n:
        raise RunFolderError(
            f"{pairs.folder.root} has no pairs to draw: run its `mora-data build` to the end"
        )
    if pair_id is None:
        pair_id = min(ix.ids, key=lambda i: (-float(ix.numbers["margin_total"][ix.row_of[i]]), i))
    if pair_id not in ix.row_of:
        raise RunFolderError(f"{pairs.folder.root} has no pair {pair_id}")
    return read_pair(ix, ix.row_of[pair_id])


def _ranges(answers: Sequence[ScoredAnswer], plane: Plane) -> str:
    """How far the answers lie apart in each dimension: what there is to learn from them."""
    out = []
    for d in plane:
        known = [v for a in answers if (v := a.rewards.get(d)) is not None]
        out.append(f"{d} from {min(known):g} to {max(known):g}" if known else f"{d} not scored")
    return f"rewards: {', '.join(out)}"


def _nested(picture: str, x: int, y: int) -> str:
    """A panel inside another picture; only the whole has a title and a description."""
    inner = re.sub(r"<title>.*?</title><desc>.*?</desc>", "", picture, count=1)
    return inner.replace("<svg ", f'<svg x="{x}" y="{y}" ', 1).replace(' role="img"', "", 1)


def main(argv: Sequence[str]) -> int:
    """Write the file; one line where it can't be."""
    if len(argv) not in (2, 3):
        usage = "python -m benchmarks.reward_space RUN_DIR FILE.svg [PAIR_ID]"
        print(f"mora-data: {usage}", file=sys.stderr)
        return 2
    try:
        Path(argv[1]).write_text(draw(Path(argv[0]), *argv[2:]), "utf-8")
    except MoraError as e:
        print(f"mora-data: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
