"""How long a build takes on GPUs: `mora-data build --dry-run --gpus 8 --tokens-per-s 20000`.

A small calculator: the requests and tokens of a dry run of so many prompts, low and high, on GPUs
whose speed is stated by whoever asks, in prompt and output tokens together, as a server's log sums
them up. What this program takes itself was measured (docs/capacity.md names each figure's
benchmark). It knows nothing of a server's warm-up, of prompts that share a prefix, or of batches
that run empty at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .dry_run import BuildEstimate, Ends
from .show import short, span

CLIENT_REQUESTS_PER_S = 2000.0
"""What one client process is trusted with: 80 % of a core. Its own limit was 5,092 with nothing to
wait for."""
ANSWER_BYTES_PER_TOKEN = 4.5
"""A finalized partition holds each answer twice, compressed: 4,216 replies of PKU-SafeRLHF, 2.2 +
2.25 bytes a token."""
BYTES_PER_ANSWER = 10.0
"""Of an answer's columns beside the text: a finalized partition of the demo's simulator, 31,904
answers."""
BYTES_PER_REQUEST = 33.0
"""A verdict's record, its key and its score: the same partition, 100,290 requests, 29; and the
prompt's name in it, 3.6 (16,012 requests of the demo)."""
DATASET_SHARE = 0.5
"""Of the dataset folder with all configs beside the partitions: the same run, 2.3 of 4.4 MB."""
AFTER_CPU_S_PER_PROMPT = 0.0004
"""Selection, `preference` and report of 16 answers: benchmarks/large.py; one process."""


@dataclass(frozen=True, slots=True)
class CapacityRow:
    """One line of the table; pairs are (low, high).

    Attributes:
        requests: sent.
        answers: of the policy.
        tokens: prompt and output tokens together.
        hours: until the last answer, with GPUs that are never idle.
        gpu_hours: hours times GPUs.
        requests_per_s: what the clients have to keep up with.
        clients: client processes that it takes.
        storage_gb: partitions and dataset folder.
        after_hours: selection, publishing and report, on one core.
        cost: gpu_hours at the price given; None without one.
    """

    prompts: int
    gpus: int
    requests: Ends
    answers: Ends
    tokens: Ends
    hours: Ends
    gpu_hours: Ends
    requests_per_s: Ends
    clients: tuple[int, int]
    storage_gb: Ends
    after_hours: float
    cost: Ends | None = None


def capacity(
    found: Sequence[BuildEstimate],
    gpus: Sequence[int],
    tokens_per_s: float,
    gpu_price: float | None = None,
) -> list[CapacityRow]:
    """A row for each estimate and number of GPUs.

    `tokens_per_s` is that of one GPU, prompt and output tokens together; `gpu_price` that of a
    GPU's hour.
    """
    return [_row(f, g, tokens_per_s, gpu_price) for f in found if f.prompts for g in gpus]


def _row(found: BuildEstimate, gpus: int, tokens_per_s: float, price: float | None) -> CapacityRow:
    requests, answers, tokens_out = found.requests, found.answers, found.tokens_out
    tokens = found.tokens_in[0] + tokens_out[0], found.tokens_in[1] + tokens_out[1]
    hours = tokens[0] / (gpus * tokens_per_s * 3600), tokens[1] / (gpus * tokens_per_s * 3600)
    rates = sorted(r / max(h * 3600, 1e-9) for r, h in zip(requests, hours, strict=True))
    stored = [
        ANSWER_BYTES_PER_TOKEN * tokens_out[i]
        + BYTES_PER_ANSWER * answers[i]
        + BYTES_PER_REQUEST * requests[i]
        for i in (0, 1)
    ]
    gpu_hours = hours[0] * gpus, hours[1] * gpus
    return CapacityRow(
        prompts=found.prompts,
        gpus=gpus,
        requests=requests,
        answers=answers,
        tokens=tokens,
        hours=hours,
        gpu_hours=gpu_hours,
        requests_per_s=(rates[0], rates[1]),
        clients=(_clients(rates[0]), _clients(rates[1])),
        storage_gb=((1 + DATASET_SHARE) * stored[0] / 1e9, (1 + DATASET_SHARE) * stored[1] / 1e9),
        after_hours=found.prompts * AFTER_CPU_S_PER_PROMPT / 3600,
        cost=None if price is None else (gpu_hours[0] * price, gpu_hours[1] * price),
    )


def _clients(requests_per_s: float) -> int:
    return max(1, math.ceil(requests_per_s / CLIENT_REQUESTS_PER_S))


def capacity_table(rows: Sequence[CapacityRow], tokens_per_s: float) -> str:
    """The rows as Markdown; a range where low and high differ."""
    cells = [
        {
            "prompts": f"{r.prompts:,}",
            "GPUs": str(r.gpus),
            "requests": span(r.requests),
            "answers": span(r.answers),
            "tokens": span(r.tokens),
            "hours": span(r.hours),
            "GPU-hours": span(r.gpu_hours),
            "requests/s": span(r.requests_per_s),
            "clients": span(r.clients),
            "storage": span(r.storage_gb) + " GB",
            "core-hours after": short(r.after_hours),
            **({"cost": span(r.cost)} if r.cost else {}),
        }
        for r in rows
    ]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(c.values()) for c in cells)]
    return "\n".join(
        [
            f"At {tokens_per_s:,.0f} tokens/s a GPU, prompt and output tokens together:",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )
