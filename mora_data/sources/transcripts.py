r"""Transcripts: conversations written as one text, each turn behind a mark.

    Human: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:
    <|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n

A text is a transcript where it *begins* with a mark, and, where the mark is a plain word, a reply
is marked, too; a prompt that only speaks of marks stays a prompt.
"""

from __future__ import annotations

import re

from ..errors import DropRow
from ..types import Message, Messages
from . import turns_in

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
_SPLIT = {name: re.compile(tag.format("role")) for name, tag in MARKS.items()}
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
        before, *parts = _SPLIT[marks].split(body)
        if before.strip():
            raise DropRow("no_marker", "text before the first marker")
        # a mark without a name ends a turn: what follows it up to the next name is no text
        turns = [
            {"role": role, "content": said.replace("</s>", "").strip()}
            for role, said in zip(parts[::2], parts[1::2], strict=True)
            if role
        ]
        names = {"Human", "Assistant"} if marks == "HH" else set()
        if any(f"{n}:" in t["content"] for t in turns for n in names):
            raise DropRow("stray_marker")
    if turns and not turns[-1]["content"].strip():
        turns.pop()
    return turns_in(turns)
