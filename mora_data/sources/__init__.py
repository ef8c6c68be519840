r"""Sources: rows of a preference dataset -> parsed rows. Mining (sources/mine.py) turns parsed rows
into prompts.

    kind                      rows
    pku-saferlhf              PKU-Alignment/PKU-SafeRLHF, 16 columns, and the 7 columns of 2023
    hh-rlhf                   Anthropic/hh-rlhf, every data_dir, red-team-attempts too
    ultrafeedback             openbmb/UltraFeedback
    ultrafeedback-binarized   HuggingFaceH4/ultrafeedback_binarized
    helpsteer                 nvidia/HelpSteer2, HelpSteer
    auto, jsonl               anyone's rows, in any layout of the table in layouts.py

One rule decides what happens to a defect. Mining uses the *prompt* of a row and never its replies
(`--engine recorded` aside), so a row is left out (`DropRow`) only where the prompt can't be
trusted: unreadable text, turns out of order, sides that disagree on the context, a benchmark's
question. Where only a reply or a label is bad, the prompt is kept and the defect is a counted note.
Labels become strata, for sampling; they are never verdicts.

A new source is one file, one line in SOURCES and one test; or a dotted path `module:Class` as
`source.kind`. The functions at the end read columns of a row; whatever is not as it should be is a
`DropRow` with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from .. import plugins
from ..errors import DropRow, SettingsError, SourceError
from ..settings import SourceSettings, nearest
from ..types import Message, Messages, Row

SOURCES = {
    "pku-saferlhf": "mora_data.sources.pku:PKU_SAFERLHF",
    "hh-rlhf": "mora_data.sources.hh:HH_RLHF",
    "ultrafeedback": "mora_data.sources.ultrafeedback:ULTRAFEEDBACK",
    "ultrafeedback-binarized": "mora_data.sources.layouts:BINARIZED",
    "helpsteer": "mora_data.sources.helpsteer:HELPSTEER",
    "auto": "mora_data.sources.auto:Auto",
    "jsonl": "mora_data.sources.auto:Auto",
}


_SENTENCE_ENDS = frozenset(["", *".!?:;…。！？\"'`”’»)]}>*|_~0123456789"])
_MISSING = object()
RatedAnswer = tuple[str, Mapping[str, float]]  # of a row: its text, and its ratings by name


class ParsedRow(NamedTuple):
    """What one source row says: a conversation that ends with a user turn, and the source's own
    labels."""

    messages: Messages
    stratum: str = "all"
    category: str | None = None
    notes: tuple[str, ...] = ()  # defects that leave the prompt intact
    answers: tuple[RatedAnswer, ...] = ()


class SourceAdapter(Protocol):
    """Reads the rows of one dataset. Built from the build's `source` settings.

    Where rows carry rated answers (`ParsedRow.answers`), it has `absolute`, too, and may have
    `sft`: see `Layout`.
    """

    required: tuple[frozenset[str], ...]
    """Alternatives: a row must have all columns of one of these sets."""

    def __init__(self, settings: SourceSettings) -> None: ...

    def files(self) -> list[str]:
        """fnmatch patterns of the files of (config, split) inside the dataset repository; empty:
        every data file."""
        ...

    def parse(self, row: Row, file: str) -> ParsedRow:
        """What a row that came from `file` ("folder/name") says.

        Raises:
            DropRow: the prompt can't be trusted; the reason is counted.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One way in which rows are written; called with settings, the source of rows so written.

    Attributes:
        name: for `source.layout`.
        what: in words, for the line that says what a file is.
        known_by: its columns, for the page of layouts.
        matches: whether a row is of it.
        read: what a row says; raises DropRow.
        absolute: ratings of different rows compare. Then a row with the prompt of the row before
            adds its answers to it; else every row stands alone, prompts that repeat included.
        asks_in_a_column: the question is a text in a column of its own, so there may be a second.
        scales: lowest and highest value of ratings, where they are known.
        patterns: of a dataset on the Hub, as all that follows: its files, by the settings.
        folders: those whose names are strata.
        withdrawn: the beginning of a commit that must not be read.
        sft: what its card says of training on its replies: "" nothing, else a warning;
            "refused: why" forbids it.
    """

    name: str
    what: str
    known_by: str
    matches: Callable[[Row], object]
    read: Callable[[Row], ParsedRow]
    absolute: bool = False
    asks_in_a_column: bool = False
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    patterns: Callable[[SourceSettings], list[str]] = lambda settings: settings.files
    folders: frozenset[str] = frozenset()
    withdrawn: str = ""
    sft: str = ""
    settings: SourceSettings = field(default_factory=lambda: SourceSettings(kind="auto"))
    required: ClassVar[tuple[frozenset[str], ...]] = ()

    def __call__(self, settings: SourceSettings) -> Layout:
        """The source of its rows.

        Raises:
            SettingsError: the revision is withdrawn.
        """
        if self.withdrawn and (settings.revision or "").startswith(self.withdrawn):
            raise SettingsError(
                f"source.revision {settings.revision} holds wrong scores: use a later commit"
            )
        return replace(self, settings=settings)

    def files(self) -> list[str]:
        """As a source's."""
        return self.patterns(self.settings)

    def parse(self, row: Row, file: str) -> ParsedRow:
        """As a source's."""
        parsed = self.read(row)
        if self.folders and parsed.stratum == "all":
            folder = file.partition("/")[0]
            folder = folder if folder in self.folders else self.settings.config
            if folder in self.folders:
                return ParsedRow(parsed[0], folder, *parsed[2:])
        return parsed


def is_rated(source: SourceAdapter) -> bool:
    """Whether the rows of a source carry rated answers."""
    return hasattr(source, "absolute")


def load_source(settings: SourceSettings) -> SourceAdapter:
    """The adapter of `settings.kind`.

    Raises:
        SettingsError: unknown kind (the nearest is named), or a dotted path that leads nowhere.
    """
    needs = ("required", "files", "parse")
    adapter: SourceAdapter = plugin_of(settings).call(settings, needs=needs)
    if hasattr(adapter, "recorded"):
        raise SettingsError(
            f"source.kind {settings.kind}: give rated answers as ParsedRow.answers in place of"
            " recorded()"
        )
    return adapter


def plugin_of(settings: SourceSettings) -> plugins.Plugin:
    """The adapter's class, not yet imported."""
    return plugins.load(SOURCES, settings.kind, "source.kind")


def sample_path(kind: str) -> Path:
    """The sample rows of a source, written for this package in the source's exact schema.

    Raises:
        SourceError: this kind ships none.
    """
    name = "jsonl" if kind == "auto" else kind
    path = Path(__file__).parent / "sample" / f"{name}.jsonl"
    if not path.is_file():
        raise SourceError(
            f"no sample rows for source.kind {kind!r} ({nearest(kind, SOURCES)}): give --data PATH"
        )
    return path


def text_in(row: Row, column: str) -> str:
    """The string in `column`; it may be empty.

    Raises:
        DropRow: missing_column, null_text, wrong_type.
    """
    value = row.get(column, _MISSING)
    if isinstance(value, str):
        return value
    if value is _MISSING:
        raise DropRow("missing_column", column)
    raise DropRow("null_text" if value is None else "wrong_type", column)


def prompt_in(row: Row, column: str) -> str:
    """The prompt in `column`, without the white space around it.

    Raises:
        DropRow: empty_prompt, or as `text_in`.
    """
    found = text_in(row, column).strip()
    if not found:
        raise DropRow("empty_prompt", column)
    return found


def user_turn(content: str) -> Messages:
    """A conversation of one user turn."""
    return (Message(role="user", content=content),)


def number_in(value: object) -> float | None:
    """The finite number in a label, or None: a bool, a text, NaN and infinity are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < float("inf") else None


def score_in(value: object) -> float | None:
    """The number in a label, also where it is a text ("4", "4.0"); "N/A" is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return number_in(value)


def truth_in(value: object) -> bool | None:
    """The truth value in a label, also where a table has it as a text ("True")."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def side_in(value: object) -> int | None:
    """The first or second answer, 0 or 1, that a label names."""
    number = score_in(value) if isinstance(value, str) else value
    return int(number) if number in (0, 1) else None


def reply_notes(*replies: object) -> Iterable[str]:
    """Defects of the replies to one prompt: reply_missing, reply_empty, reply_truncated,
    replies_identical."""
    texts = [r.strip() for r in replies if isinstance(r, str)]
    if len(texts) < len(replies):
        yield "reply_missing"
    if "" in texts:
        yield "reply_empty"
    if not _SENTENCE_ENDS.issuperset([t[-1:] for t in texts]):
        yield "reply_truncated"
    if len(set(texts)) < len(texts):
        yield "replies_identical"
