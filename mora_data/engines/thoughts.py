"""What of a model's text is its answer: a reasoning model thinks aloud before it.

    <think>They want it short.</think>At 70 degrees.       At 70 degrees.
    They want it short.\n</think>\n\nAt 70 degrees.        the same: the chat template opened it
    <think>They want it short. So                          nothing: the thought was cut off

A thought stands at the start of a reply, and nowhere else: an answer about the tag `<think>` is
left as it is. A closing tag without its opening one ends a thought, too, but not in quotes, in
code, or where the text opened it before. A thought that the template opens and that is cut off
has no tag at all; then `finish_reason` alone says that the answer is no whole one.
"""

from __future__ import annotations

import re

from ..types import Answer

Logprobs = tuple[tuple[str, tuple[tuple[str, float], ...]], ...]

# how models write a thought: DeepSeek, Qwen and most others; Seed; MiniMax; Magistral; Kimi-VL;
# Sky-T1; Command A; Apertus; Gemma; gpt-oss, whose special tokens some servers leave out
_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think", "mm:think")
_PAIRS = {
    **{f"<{name}>": f"</{name}>" for name in _NAMES},
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|end_thinking|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "<unused94>thought": "<unused95>",
}
_OPENED = re.compile(rf"\s*({'|'.join(map(re.escape, _PAIRS))})", re.I)
_CLOSED = {a: re.compile(re.escape(b), re.I) for a, b in _PAIRS.items()}
# those that a chat template opens, so that the reply has the closing tag alone
_OPENER = {b: re.compile(re.escape(a), re.I) for a, b in _PAIRS.items() if "/" in b}
_LONE = re.compile("|".join(map(re.escape, _OPENER)), re.I)
_HARMONY = re.compile(
    r"\s*(?:(?:<\|start\|>assistant)?<\|channel\|>|analysis(?:<\|message\|>|(?=[A-Z])))"
)
_FINAL = re.compile(
    r"<\|channel\|>final[^<\n]{0,20}(?:<\|constrain\|>\w+)?<\|message\|>|assistantfinal"
)
_END = re.compile(r"(?:<\|(?:return|end|call)\|>){1,3}\Z")
# what the answer is put into behind a thought: Hunyuan, ERNIE, Sky-T1, Command A
_WRAPPED = re.compile(
    r"\s*(?:<(answer|response)>(.*?)(?:</\1>\s*)?"
    r"|<\|(?:begin_of_solution|START_RESPONSE)\|>(.*?)"
    r"(?:<\|(?:end_of_solution|END_RESPONSE)\|>\s*)?)\Z",
    re.S,
)
_MARKS = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>[^<]{0,40}(?:<\|constrain\|>\w+)?<\|message\|>"
    r"|<\|end\|>|^analysis|assistantfinal\Z|<(?:answer|response)>\s*\Z"
    r"|<\|(?:begin_of_solution|START_RESPONSE)\|>\s*\Z|"
    + "|".join(re.escape(tag) for pair in _PAIRS.items() for tag in pair),
    re.I,
)
_MOST_TAGS = 20  # that are looked at, from the end
_QUOTES = frozenset("`'\"\u201c\u201d\u2018\u2019")

_CUT = frozenset(
    "length max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length"
    " model_length token_limit truncated".split()
)
_ENDED = frozenset("stop eos eos_token end_turn stop_sequence end completed complete".split())


def as_answer(
    written: str,
    reason: str,
    tokens: int,
    logprobs: Logprobs | None = None,
    beside: str = "",
    keep: bool = False,
) -> Answer:
    """The answer in what a model wrote, with its probabilities, and why it ended: `stop`, `length`,
    or as the server puts it. A thought that was never closed leaves an empty one, ended by
    `length`.

    `beside` is a thought that is not in `written`; the tokens of `logprobs` begin with it. `keep`:
    the answer has what was thought.
    """
    text, is_cut = without_thought(written)
    if is_cut:
        reason = "length"
    elif reason not in ("stop", "length"):
        low = reason.lower()
        reason = "length" if low in _CUT else "stop" if low in _ENDED else reason
    if not (beside or len(text) < len(written)):
        return Answer(text, reason, tokens, logprobs=logprobs)
    if logprobs is not None:
        logprobs = _from(logprobs, text)
    thought = (beside.strip() or _thought_in(written, text)) if keep else None
    return Answer(text, reason, tokens, logprobs=logprobs, thought=thought)


def without_thought(written: str) -> tuple[str, bool]:
    """The answer behind the thoughts of a reply, and whether the last thought was never closed;
    then there is no answer. A text without a thought is returned as it is."""
    text = written
    while (opened := _OPENED.match(text)) is not None:
        closed = _CLOSED[opened[1].lower()].search(text, opened.end())
        if closed is None:
            return "", True
        text = text[closed.end() :]
    if _HARMONY.match(text) is not None:
        *before, text = _FINAL.split(text)
        return (_END.sub("", text.strip()).strip(), False) if before else ("", True)
    if "<" in text or "[" in text or "◁" in text:
        low = text.lower()  # longer needles are found faster than a pattern
        if "/think" in low or ":think" in low or "/thought" in low or "/reasoning" in low:
            text = text[_end_of_thought(text) :]
    if len(text) == len(written):
        return written, False
    wrapped = _WRAPPED.match(text)
    return (wrapped[2] or wrapped[3] or "" if wrapped else text).strip(), False


def _thought_in(written: str, text: str) -> str:
    """What stands before the answer `text`, without the marks of thoughts."""
    before = written[: written.rfind(text)] if text else written
    return _MARKS.sub("", before).strip()


def _end_of_thought(text: str) -> int:
    """Where a thought ends that began before the text did: behind the last closing tag that nothing
    in the text opens; 0 where there is none."""
    for closed in reversed(list(_LONE.finditer(text))[-_MOST_TAGS:]):
        before, after = text[: closed.start()], text[closed.end() :]
        if before[-1:] in _QUOTES or after[:1] in _QUOTES or before.count("```") % 2:
            continue
        opened = [text[: m.start()] for m in _OPENER[closed[0].lower()].finditer(before)]
        if _ends_line(before) or after.lstrip(" \t")[:1] in ("", "\n"):
            # the tag of a thought, which a tag in the middle of a line can't have opened
            opened = [b for b in opened if _ends_line(b)]
        if not opened:
            return closed.end()
    return 0


def _ends_line(text: str) -> bool:
    return text.rstrip(" \t")[-1:] in ("", "\n")


def _from(logprobs: Logprobs, text: str) -> Logprobs:
    """The tokens of the answer, without those of the thought before it."""
    end, at = "".join(token for token, _ in logprobs).rfind(text), 0
    for i, (token, _) in enumerate(logprobs):
        if at >= end:
            return logprobs[i:]
        at += len(token)
    return ()
