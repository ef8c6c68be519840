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
Labels become strata and priors, for sampling; they are never verdicts.

A new source is one file, one line in SOURCES and one test; or a dotted path `module:Class` as
`source.kind`. The functions at the end read columns of a row and conversations in them, lists of
turns and transcripts; whatever is not as it should be is a `DropRow` with a reason.

A transcript is a conversation written as one text, each turn behind a mark:

    Human: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:
    <|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n

A text is one where it *begins* with a mark, and, where the mark is a plain word, a reply is marked,
too; a prompt that only speaks of marks stays a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
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


_ROLES = {
    **dict.fromkeys("user human prompter instruction".split(), "user"),
    **dict.fromkeys("assistant gpt bot chatbot model ai response".split(), "assistant"),
    **dict.fromkeys("system developer".split(), "system"),
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
    # dimension -> mean label in [0, 1], higher is better
    priors: Mapping[str, float] = {}
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


def turns_in(value: object) -> Messages:
    """A list of {role, content}, {from, value} and the like as messages, blank-stripped; an empty
    system turn is none, and who speaks last is not checked.

    Raises:
        DropRow: wrong_type, null_text, unknown_role, empty_prompt, empty_turn, not_text.
    """
    if not isinstance(value, (list, tuple)):
        raise DropRow("null_text" if value is None else "wrong_type", "messages")
    turns = tuple(_turn(item) for item in value)
    if turns and turns[0] == {"role": "system", "content": ""}:
        turns = turns[1:]
    if not turns:
        raise DropRow("empty_prompt", "messages")
    return turns


def checked_context(turns: Messages) -> Messages:
    """The turns, seen to be a context: an optional system turn, then user and assistant by turns,
    user last.

    Raises:
        DropRow: misplaced_system, starts_without_user, same_speaker, ends_without_user,
            empty_prompt, empty_turn.
    """
    roles = [m["role"] for m in turns]
    if roles[:1] == ["system"]:
        del roles[0]
    if roles != [*(["user", "assistant"] * (len(roles) // 2)), "user"]:
        raise DropRow(_disorder(roles))
    contents = [m["content"] for m in turns]
    if "" in contents:
        raise DropRow("empty_turn" if contents[-1] else "empty_prompt")
    return turns


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


def _disorder(roles: list[str]) -> str:
    """Why these are not user and assistant by turns, user last."""
    if "system" in roles:
        return "misplaced_system"
    if not roles or roles[0] != "user":
        return "starts_without_user"
    return "same_speaker" if any(a == b for a, b in pairwise(roles)) else "ends_without_user"


def _role(name: str) -> str:
    known = _ROLES.get(name.lower())
    if known is None:
        raise DropRow("unknown_role", name)
    return known


def _turn(item: object) -> Message:
    if not isinstance(item, Mapping):
        raise DropRow("wrong_type", "messages")
    role = text_in(item, "role" if "role" in item else "from" if "from" in item else "role")
    known = _role(role)
    column = next((c for c in ("content", "value", "text", "parts") if c in item), "content")
    if isinstance(parts := item.get(column), (list, tuple)):
        return Message(role=known, content="\n".join(map(_part, parts)).strip())
    return Message(role=known, content=text_in(item, column).strip())


def _part(part: object) -> str:
    """The text of one part of a turn's content."""
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise DropRow("not_text", "a part of a turn")
    return text


MARKS = {
    "ChatML": r"<\|im_start\|>\s*(?P<{}>\w+)\n|<\|im_end\|>",
    "Llama 3": r"<\|start_header_id\|>\s*(?P<{}>\w+)\s*<\|end_header_id\|>|<\|eot_id\|>",
    "Zephyr": r"<\|(?P<{}>system|user|assistant)\|>\n?|</s>",
    "Gemma": r"<start_of_turn>\s*(?P<{}>\w+)\n|<end_of_turn>",
    "extra_id": r"<extra_id_\d>(?P<{}>System|User|Assistant)[ \t]*(?:\n|$)",
    "###": r"(?:^|\n)### ?(?P<{}>Human|User|Assistant|System|Instruction|Response):\s?",
    "HH": r"(?:^|\n\n)(?P<{}>Human|Assistant):(?: |$|(?=\n))",
    "Vicuna": r"(?:^|\s|</s>)(?P<{}>USER|ASSISTANT|SYSTEM):\s?",
    "User:": r"(?:^|\n)(?P<{}>User|Assistant|System):\s?",
}
# blank lines are put before a text that is split: a pattern that begins with them instead of ^ is
# searched for twice as fast
_SPLIT = {n: re.compile(tag.replace("(?:^|", "(?:").format("role")) for n, tag in MARKS.items()}
_PRELUDE = re.compile(
    r"<s>|<\|begin_of_text\|>|<bos>|BEGINNING OF CONVERSATION:|Below is an instruction[^#]*"
)
_OPENS = re.compile(
    r"(?P<inst>\[INST\])|"
    + "|".join(f"(?P<m{i}>{tag.format(f'r{i}')})" for i, tag in enumerate(MARKS.values()))
)
_NEEDS_REPLY = {
    "###": "Assistant|Response",
    "HH": "Assistant",
    "Vicuna": "ASSISTANT",
    "User:": "Assistant",
}


def marked(text: str) -> str:
    """The kind of marks that a transcript's turns begin with; empty for a plain text."""
    if text[:1].isalpha() and text[0] not in "HUASB":
        return ""
    opened = _OPENS.match(_body(text))
    if opened is None:
        return ""
    if opened["inst"]:
        return "[INST]" if "[/INST]" in text else ""
    name = next(n for i, n in enumerate(MARKS) if opened[f"m{i}"] is not None)
    reply = _NEEDS_REPLY.get(name)
    if reply and re.fullmatch(reply, opened[f"r{list(MARKS).index(name)}"]):
        return ""
    return "" if reply and not re.search(rf"(?:^|\s)(?:### ?)?(?:{reply}):", text) else name


def _body(text: str) -> str:
    """A text without what may stand before the first mark."""
    text = text.lstrip()
    before = _PRELUDE.match(text)
    return text if before is None else text[before.end() :].lstrip()


def _inst_turns(text: str) -> list[Message]:
    """The turns of a Llama 2 transcript."""
    turns: list[Message] = []
    for part in text.split("[INST]")[1:]:
        user, closed, reply = part.partition("[/INST]")
        if not closed:
            raise DropRow("stray_marker", "[INST] without [/INST]")
        system, closed, rest = user.partition("<</SYS>>")
        if closed and system.lstrip().startswith("<<SYS>>"):
            turns.append({"role": "system", "content": system.lstrip().removeprefix("<<SYS>>")})
            user = rest
        turns.append({"role": "user", "content": user})
        said = reply.rstrip().removesuffix("<s>").replace("</s>", "")
        turns.append({"role": "assistant", "content": said})
    return turns


def split_turns(text: str, marks: str) -> Messages:
    """The turns of a text that begins with a mark, blank-stripped; their order is not checked.

    Raises:
        DropRow: no_marker, unknown_role.
    """
    before, *parts = _SPLIT[marks].split(f"\n\n{text}")
    if before.strip():
        raise DropRow("no_marker", "text before the first marker")
    # a mark without a name ends a turn: what follows it up to the next name is no text
    turns = zip(parts[::2], parts[1::2], strict=True)
    try:
        return tuple(
            [{"role": _ROLES[n.lower()], "content": said.strip()} for n, said in turns if n]
        )
    except KeyError:
        bad = next(n for n in parts[::2] if n and n.lower() not in _ROLES)
        raise DropRow("unknown_role", bad) from None


def transcript_turns(text: str, marks: str) -> Messages:
    """The turns of a transcript; a mark at its end, with no reply behind, is no turn.

    Raises:
        DropRow: unknown_role, stray_marker, as `turns_in`.
    """
    if marks == "[INST]":
        turns = _inst_turns(text)
    else:
        body = _body(text)
        if marks == "###":
            body = re.sub(r"\n### ?Input:\s*", "\n", body)
        turns = [
            {"role": t["role"], "content": t["content"].replace("</s>", "")}
            for t in split_turns(body, marks)
        ]
        names = {"Human", "Assistant"} if marks == "HH" else set()
        if any(f"{n}:" in t["content"] for t in turns for n in names):
            raise DropRow("stray_marker")
    if turns and not turns[-1]["content"].strip():
        turns.pop()
    return turns_in(turns)
