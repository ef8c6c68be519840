"""Text normalisation and hashing. Everything that is compared, split or seeded by text goes through
these functions."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

from .secrets import redacted, visible
from .types import Message, Messages

K = TypeVar("K", bound="str | tuple[str, str]")

ENOUGH_WORDS = 4  # different function words of one language, with which no other is surely meant
READ = 240  # characters that tell the language

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MARKS = bytes(c for c in range(128) if re.fullmatch(r"[^\w\s]", chr(c)))
_AS_WORD = bytes(119 if c < 128 and re.fullmatch(r"\w", chr(c)) else 32 for c in range(256))

_LAYERS = 8
_END_MARK = re.compile(r"(?:</s>|<\|[\w ]{1,20}\|>|<(?:end_of_turn|eos)>)\Z")
_WRAPPED = re.compile(
    r"```\w*\s(.*)```|\*\*(.*)\*\*|`([^`]*)`|<(answer|response|output|json)>(.*)</\4>", re.S | re.I
)


class _Pattern:
    def __init__(self, regex: str, flags: int) -> None:
        self._written = regex, flags

    def __getattr__(self, method: str) -> Any:
        found = getattr(re.compile(*self._written), method)
        setattr(self, method, found)
        return found


def pattern(regex: str, flags: int = 0) -> re.Pattern[str]:
    """As `re.compile`, but compiled when it is first used: a run needs few of a module's patterns,
    and all of them together were a thirtieth of the start of a build."""
    return cast("re.Pattern[str]", _Pattern(regex, flags))


def normalise(text: str, tidy: bool = False) -> str:
    """NFKC, case folded, white space collapsed: two texts a reader would call the same compare
    equal. `tidy` texts are known to hold no control character, no tab and no line end."""
    if not text.isascii():
        text, tidy = unicodedata.normalize("NFKC", text), False
    # the only printable white space is the blank
    if "  " in text or not (tidy or text.isprintable()):
        text = " ".join(text.split())
    return text.strip().casefold()


def unwrap(text: str) -> str:
    """A model's reply without what it may be wrapped in as a whole: a code fence, bold marks, a tag
    for the answer, marks of its end, a full stop behind an object."""
    for _ in range(_LAYERS):
        inner = _END_MARK.sub("", text.strip("\ufeff \t\r\n"))
        wrapped = _WRAPPED.fullmatch(inner)
        inner = wrapped[wrapped.lastindex or 0] if wrapped else inner
        inner = inner[:-1] if inner.endswith("}.") else inner
        if inner == text:
            break
        text = inner
    return text


def digest(*parts: str, hex_digits: int = 16) -> str:
    """First `hex_digits` of sha256 over the parts, joined by a unit separator."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[
        :hex_digits
    ]


def context_id(messages: Messages) -> str:
    """`prompt_id` of a conversation: hash of the normalised whole context, roles included."""
    return context_and_group(messages)[0]


def group_id(messages: Messages) -> str:
    """Hash of the normalised first user turn; train and test never share one."""
    return context_and_group(messages)[1]


def context_and_group(messages: Messages, tidy: bool = False) -> tuple[str, str]:
    """`context_id` and `group_id`, each turn normalised once; `tidy` as there."""
    texts = [normalise(m["content"], tidy) for m in messages]
    roles = [m["role"] for m in messages]
    first = texts[roles.index("user")] if "user" in roles else texts[0]
    turns = [f"{role}\x1e{said}" for role, said in zip(roles, texts, strict=True)]
    return digest(*turns), digest("group", first)


@lru_cache(maxsize=4096)  # a prompt's calls of one purpose have one
def seed_of(*parts: str | int) -> int:
    """31-bit seed from the parts."""
    return int(digest("seed", *(str(p) for p in parts)), 16) & 0x7FFFFFFF


def words(text: str) -> list[str]:
    """Lower-case word tokens."""
    return _WORD.findall(text.lower())


def n_tokens(text: str) -> int:
    """Length of a text in word and punctuation tokens: close to a BPE count for English, with no
    tokenizer to load."""
    if not text.isascii():
        return len(_TOKEN.findall(text))
    raw = text.encode()  # the same count several times as fast
    beginnings = (b" " + raw.translate(_AS_WORD)).count(b" w")
    return beginnings + len(raw) - len(raw.translate(None, _MARKS))


class Language(NamedTuple):
    """Script of most letters, and the language where function words tell it; empty where nothing
    does."""

    script: str
    tongue: str


def language_of(text: str) -> Language:
    """What the first `READ` characters of a text are written in: a heuristic that says nothing
    rather than guess."""
    head = text[:READ]
    return Language(script_of(head), tongue_of(head))


def differ(a: Language, b: Language) -> bool:
    """Surely another script or another language."""
    return any(x and y and x != y for x, y in zip(a, b, strict=True))


def is_foreign(asked: Language, text: str) -> bool:
    """Whether a text is surely in another script or language than the one asked in."""
    own = _VOCABULARIES.get(asked.tongue)
    if own is not None and len(own.intersection(text[:READ].lower().split())) >= ENOUGH_WORDS:
        return False  # most answers end here
    return differ(asked, language_of(text))


def script_of(text: str) -> str:
    """Commonest script of the letters, by the first word of their Unicode names; empty without
    letters."""
    if text.isascii():
        return "LATIN" if any(c.isalpha() for c in text) else ""
    counts: dict[str, int] = {}
    for c in text:
        if c.isalpha():
            name = unicodedata.name(c, "?").split()[0]
            name = "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA") else name
            counts[name] = counts.get(name, 0) + 1
    return max(sorted(counts), key=counts.__getitem__) if counts else ""


def commonest_first(counts: Mapping[K, int]) -> dict[K, int]:
    """The counts in falling order; equal ones in the order of their names."""
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as one text: a single turn as it is, several as `role: content` lines."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def one_line(text: object, at_most: int = 200) -> str:
    """A text from elsewhere, as of an error, on one line: no secret, no control character."""
    try:
        said = str(text)
    except RecursionError:
        said = "nested too deeply to be shown"
    return visible(" ".join(redacted(said).split()))[:at_most]


def tongue_of(text: str) -> str:
    """Language with most function words in the text, when it is clear: at least two, and more than
    any other."""
    counts = dict.fromkeys(_FUNCTION_WORDS, 0)
    for word in words(text):
        for name in TONGUES.get(word, ()):
            counts[name] += 1
    (first, name), (second, _) = sorted(((n, name) for name, n in counts.items()), reverse=True)[:2]
    return name if first >= 2 and first > 1.5 * second else ""


_FUNCTION_WORDS = {
    "english": "the and is are of to in what how does for with that it my you do can",
    "german": "der die das und ist ich nicht ein eine wie was mit für auf zu den man kann",
    "french": "le la les et est une des que qui comment dans pour pas avec sur je vous il peut",
    "spanish": "el los las y es una que cómo para con por del mi qué puedo se como puede",
    "italian": "il gli e è una che come per con del della non mi cosa posso si di sono",
    "portuguese": "os as é uma que como para com não do da em meu minha posso se você por",
    "dutch": "de het een en is van ik niet hoe wat met voor op te je mijn kan dat",
}
TONGUES: dict[str, list[str]] = {}
for _name, _text in _FUNCTION_WORDS.items():
    for _word in _text.split():
        TONGUES.setdefault(_word, []).append(_name)
_VOCABULARIES = {name: frozenset(listed.split()) for name, listed in _FUNCTION_WORDS.items()}
