"""Sources: rows of a preference dataset -> drafts of prompts. Mining (sources/mine.py) turns drafts
into prompts.

    kind                      rows
    pku-saferlhf              PKU-Alignment/PKU-SafeRLHF, 16 columns, and the 7 columns of 2023
    hh-rlhf                   Anthropic/hh-rlhf, every data_dir, red-team-attempts too
    ultrafeedback             openbmb/UltraFeedback
    ultrafeedback-binarized   HuggingFaceH4/ultrafeedback_binarized
    helpsteer                 nvidia/HelpSteer2, HelpSteer
    jsonl                     anyone's rows: a `prompt` string or a `messages` list

One rule decides what happens to a defect. Mining uses the *prompt* of a row and never its replies
(`--engine recorded` aside), so a row is left out (`DropRow`) only where the prompt can't be
trusted: unreadable text, turns out of order, sides that disagree on the context, a benchmark's
question. Where only a reply or a label is bad, the prompt is kept and the defect is a counted note.
Labels become strata and priors, for sampling; they are never verdicts.

A new source is one file, one line in SOURCES and one test; or a dotted path `module:Class` as
`source.kind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from .. import plugins
from ..errors import SourceError
from ..settings import SourceSettings, nearest
from ..types import Messages, Recorded, Row

SOURCES = {
    "pku-saferlhf": "mora_data.sources.pku:PkuSafeRlhf",
    "hh-rlhf": "mora_data.sources.hh:HhRlhf",
    "ultrafeedback": "mora_data.sources.ultrafeedback:UltraFeedback",
    "ultrafeedback-binarized": "mora_data.sources.binarized:UltraFeedbackBinarized",
    "helpsteer": "mora_data.sources.helpsteer:HelpSteer",
    "jsonl": "mora_data.sources.jsonl:Jsonl",
}


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """What one source row says: a conversation that ends with a user turn, and the source's own
    labels."""

    messages: Messages
    stratum: str = "all"
    category: str | None = None
    # dimension -> mean label in [0, 1], higher is better
    priors: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # defects that leave the prompt intact


class Source(Protocol):
    """Reads the rows of one dataset. Built from the build's `source` settings."""

    required: tuple[frozenset[str], ...]
    """Alternatives: a row must have all columns of one of these sets."""

    def __init__(self, settings: SourceSettings) -> None: ...

    def files(self) -> list[str]:
        """fnmatch patterns of the files of (config, split) inside the dataset repository; empty:
        every data file."""
        ...

    def parse(self, row: Row, file: str) -> ParsedRow:
        """The draft of a row that came from `file` ("folder/name").

        Raises:
            DropRow: the prompt can't be trusted; the reason is counted.
        """
        ...


class RatedSource(Source, Protocol):
    """A source whose rows also carry rated answers, for `--engine recorded`."""

    absolute: bool
    """Whether ratings of different rows compare. Then a row with the prompt of the row before adds
    its answers to it; else every row stands alone, prompts that repeat included."""
    sft: str
    """What the dataset's card says of training on its replies: "" nothing, else a warning;
    "refused: why" forbids it."""

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """The row's answers with their ratings; a rating that is missing or unreadable is left
        out."""
        ...


def rated(source: Source) -> RatedSource | None:
    """The source as one with rated answers, None where its rows carry none."""
    return cast(RatedSource, source) if hasattr(source, "recorded") else None


def load(settings: SourceSettings) -> Source:
    """The adapter of `settings.kind`.

    Raises:
        SettingsError: unknown kind (the nearest is named), or a dotted path that leads nowhere.
    """
    adapter: Source = plugin_of(settings).target(settings)
    return adapter


def plugin_of(settings: SourceSettings) -> plugins.Plugin:
    """The adapter's class, not yet imported."""
    return plugins.load(SOURCES, settings.kind, "source.kind")


def sample_path(kind: str) -> Path:
    """The sample rows of a source, written for this package in the source's exact schema.

    Raises:
        SourceError: this kind ships none.
    """
    path = Path(__file__).parent / "sample" / f"{kind}.jsonl"
    if not path.is_file():
        raise SourceError(
            f"no sample rows for source.kind {kind!r} ({nearest(kind, SOURCES)}): give --data PATH"
        )
    return path
