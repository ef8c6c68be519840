"""The files shipped beside the code: templates/, builders/, cards/, train_recipes/; and how the
prompt templates among them are rendered.

A wheel carries them inside the package; an editable install or a checkout has them in the folder
above it.

A prompt template is Jinja in a sandbox that refuses undefined variables, with one block per chat
message, in their order: `{% block system %}...{% endblock %}` (optional), worked examples as
`{% block user_1 %}` and `{% block assistant_1 %}` (optional), and `{% block user %}`. The name of a
block begins with the role that speaks; one that renders to nothing is no message. Text that comes
from a dataset or a model only ever enters as a variable, so it can neither open a block nor run
code; and what a variable prints is `inert`, so it can't end a turn either.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from .errors import SettingsError
from .text import one_line
from .types import ROLES, Message, Messages

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

CACHE_ENV = "MORA_DATA_CACHE"
_MOST_PARTS = 200_000  # of YAML: settings, cards and price tables have some hundred
_GAP = secrets.token_hex(16)  # where the answer goes: no text of a row has it
_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The shipped folder `name`.

    Raises:
        SettingsError: the installation lacks it.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        found = parent / name
        if found.is_dir():
            return found
    raise SettingsError(
        f"the installation lacks its {name}/ folder (looked in {_PACKAGE.name}/ and beside it):"
        " reinstall"
    )


def names(name: str, pattern: str) -> list[str]:
    """Stems of the shipped files in folder `name` that match `pattern`, sorted."""
    return sorted(p.stem for p in folder(name).glob(pattern))


def cache() -> Path:
    """The user's cache: $MORA_DATA_CACHE, else mora-data in the system's folder for caches."""
    if base := os.environ.get(CACHE_ENV):
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mora-data"


def document_environment(name: str, sandboxed: bool = False, **options: Any) -> Environment:
    """Jinja for the shipped documents in folder `name` (pages, cards): undefined values refused,
    lines of tags leave no trace; `options` go to the environment."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    kind = ImmutableSandboxedEnvironment if sandboxed else Environment
    return kind(
        loader=FileSystemLoader(folder(name)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


@lru_cache(1)
def _yaml_loader() -> Any:
    """YAML's safe loader, but that it takes no key of a mapping twice, where it would keep the
    last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.YAMLError(f"{key.value!r} stands there twice")
                seen.add(str(key.value))
            return node

    return Loader


def parse_yaml(text: str) -> Any:
    """What YAML holds.

    Raises:
        yaml.YAMLError: it is none, is nested too deeply, holds a key twice or a value that is none
            of its type, or names parts of itself again and again (`&a [*a]`), so that no end is in
            sight.
    """
    import yaml

    try:
        tree = yaml.load(text, _yaml_loader())  # noqa: S506  (a SafeLoader)
        if "*" in text:
            _check_size(tree)
        return tree
    except (RecursionError, ValueError, TypeError, AttributeError, LookupError) as e:
        why = str(e) if isinstance(e, ValueError) else "nested too deeply, or a value of no type"
        raise yaml.YAMLError(why) from e


def _check_size(tree: Any) -> None:
    """Raises ValueError for a tree of more parts than a file without aliases could spell out."""
    left, n = [tree], 0
    while left:
        part = left.pop()
        n += 1
        if n > _MOST_PARTS:
            raise ValueError("aliases that make it endless")
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part


class Template:
    """A chat template, checked when it is loaded.

    Attributes:
        name: how it was asked for.
        sha256: hash of the file's bytes, for manifests.
    """

    def __init__(
        self, name: str, source: str, known: frozenset[str], needs: Iterable[str] = ()
    ) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes

        env = _environment()
        self.name, self._known = name, known
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        try:
            tree = env.parse(source)
            self._check(tree, needs)
            self._template = env.from_string(tree)
        except TemplateError as e:
            line = e.lineno if isinstance(e, TemplateSyntaxError) else None
            raise self._error(e.message or "no template", line) from e
        self._blocks = {
            name: block
            for name, block in sorted(self._template.blocks.items(), key=lambda b: b[0] != "system")
            if name.partition("_")[0] in ROLES
        }
        self._globals = dict(self._template.globals)  # a ChainMap, slow to copy for each call
        names = list(tree.find_all(nodes.Name))
        alone = all(n.name != "self" for n in names)  # no block prints another
        printed = {id(n) for out in tree.find_all(nodes.Output) for n in out.nodes}
        self._fills = alone and all(id(n) in printed for n in names if n.name == "answer")
        self._reads = {
            b.name: meta.find_undeclared_variables(
                nodes.Template(b.body, environment=env) if alone else tree
            )
            - ({"answer"} if self._fills else set())
            for b in tree.find_all(nodes.Block)
        }
        # of each block what it read, and its text in pieces: the answer goes between them
        self._last: dict[str, tuple[list[object], list[str]]] = {}

    def _check(self, tree: nodes.Template, needs: Iterable[str]) -> None:
        """Raises SettingsError for what would reach no model, and for what it will not be given."""
        from jinja2 import meta, nodes

        for kind in (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport):
            if other := tree.find(kind):
                raise self._error("it reads another file: put that file's text here", other.lineno)
        if all(block.name != "user" for block in tree.find_all(nodes.Block)):
            raise self._error("no {% block user %}: put the message to the model in one")
        for node in tree.body:
            if isinstance(node, nodes.Block):
                if node.name.partition("_")[0] not in ROLES:
                    why = f"block {node.name!r} is no turn: name it system, user, user_1, ..."
                    raise self._error(why, node.lineno)
            elif not isinstance(node, nodes.Output) or any(
                getattr(part, "data", "{{").strip() for part in node.nodes
            ):
                why = "what stands outside the blocks reaches no model: put it in one"
                raise self._error(why, node.lineno)
        uses = meta.find_undeclared_variables(tree)
        if missing := sorted(uses - self._known):
            line = min(n.lineno for n in tree.find_all(nodes.Name) if n.name in missing)
            raise self._error(f"undefined variable(s) {', '.join(missing)}", line)
        for name in needs:
            if name not in uses:
                raise self._error(f"{{{{ {name} }}}} stands nowhere, so the model never sees it")

    def _error(self, why: object, line: int | None = None) -> SettingsError:
        """A fault of the template as one line: where, what, and what it may use."""
        at = f", line {line}" if line else ""
        may = ", ".join(sorted(self._known))
        return SettingsError(f"template {self.name}{at}: {one_line(why, 200)}; it may use: {may}")

    def render(self, variables: Mapping[str, object]) -> Messages:
        """The chat messages for these variables.

        Raises:
            SettingsError: an expression of the template fails, or the sandbox refuses it.
        """
        answer = variables.get("answer")
        fills = self._fills and isinstance(answer, str)
        if fills:
            variables = {**variables, "answer": _GAP}
        shown = inert(str(answer)) if fills else ""
        try:
            said = [(n, shown.join(self._pieces(n, variables)).strip()) for n in self._blocks]
        except Exception as e:  # whatever an expression of a user's template raises
            lines = [
                self._template.get_corresponding_lineno(line)
                for frame, line in walk_tb(e.__traceback__)
                if frame.f_code.co_filename == "<template>"
            ]
            raise self._error(e, lines[-1] if lines else None) from e
        return tuple(
            Message(role=name.partition("_")[0], content=text) for name, text in said if text
        )

    def _pieces(self, name: str, variables: Mapping[str, object]) -> list[str]:
        """A block round its answers; what it read last, as one question for each of its answers, is
        not rendered again."""
        read = [variables.get(key) for key in self._reads[name]]
        last = self._last.get(name)
        if last is None or last[0] != read:
            context = self._template.new_context({**self._globals, **variables}, shared=True)
            last = read, "".join(self._blocks[name](context)).split(_GAP)
            self._last[name] = last
        return last[1]


@lru_cache(64)  # of the builds of one process
def _compiled(name: str, source: str, known: frozenset[str], needs: tuple[str, ...]) -> Template:
    return Template(name, source, known, needs)


def load_template(
    folder_name: str,
    name: str,
    known: frozenset[str],
    needs: Iterable[str] = (),
    sample: Mapping[str, object] | None = None,
) -> Template:
    """Template `name` of templates/`folder_name`/, or the file at the path `name`; it may use the
    variables `known`, and has to use those that it `needs`. With a `sample` of those that are no
    texts it is rendered once with a history and once without.

    Raises:
        SettingsError: no such template, a syntax error, variables that will not be there (all are
            named) or that it lacks, or an expression that fails.
    """
    own = name.endswith(".j2")
    path = Path(name) if own else folder("templates") / folder_name / f"{name}.j2"
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        if own:
            why = e.strerror if isinstance(e, OSError) else "it is no UTF-8"
            raise SettingsError(f"no template can be read at {name!r}: {why}; give its path") from e
        have = ", ".join(names("templates", f"{folder_name}/*.j2"))
        raise SettingsError(
            f"no template {name!r} in templates/{folder_name}/ (there: {have});"
            " or give a path that ends in .j2"
        ) from e
    template = _compiled(f"{folder_name}/{path.stem}", source, frozenset(known), tuple(needs))
    if sample is not None:
        turns = (Message(role="user", content="Hello."), Message(role="assistant", content="Hi."))
        for history in (turns, ()):
            given = {**dict.fromkeys(known, "text"), "reverse": not history, **sample}
            template.render({**given, "history": history})
    return template


SECRET_BYTES = 16
_LETTERS = bytes(b"bcdfghjklmnpqrstvwxz"[byte % 20] for byte in range(256))  # spell no word


@dataclass(slots=True)
class Secret:
    """What the nonces of a run are made from, so that whoever writes a row can't tell them before.

    Attributes:
        key: random; a run folder has one of its own, which is put here once the folder is open.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)


def quoted(secret: Secret, messages: Messages, **texts: str) -> dict[str, Any]:
    """Template variables for what strangers wrote: `question` and `history` of a conversation, and
    `texts` by name, which the template makes inert; and the `nonce` of the tags that it puts round
    them."""
    return {
        "question": messages[-1]["content"],
        "history": messages[:-1],
        **texts,
        "nonce": nonce(secret, messages, *texts.values()),
    }


def nonce(secret: Secret, messages: Iterable[Message], *texts: str) -> str:
    """Four letters that stand neither in the conversation nor in `texts`, so nobody has guessed
    them; more where a text holds many codes. Eight would take two tokens more a tag (8.9 for 6.9,
    tokenizer of Qwen2.5), 12 hex digits eight more.

    They are the conversation's, whatever `texts` goes with it, so that the requests on its answers
    begin alike and a server computes that beginning once; another number is taken for the one whose
    text holds the first.
    """
    said = tuple((m["role"], m["content"]) for m in messages)
    within = [text.lower() for text in texts]
    number = 0
    while True:
        number, found = _drawn(secret.key, said, number)
        if not any(found in text for text in within):
            return found
        number += 1


@lru_cache(maxsize=1024)  # of the conversations whose answers are being judged
def _drawn(key: bytes, said: tuple[tuple[str, str], ...], number: int) -> tuple[int, str]:
    """The first number from `number` on whose code is not in the conversation, and that code."""
    within = "\x1f".join(content for _, content in said).lower()
    while True:
        drawn = hmac.digest(key, json.dumps([number, said]).encode(), "sha256")
        letters = 4 + number // 8  # a text may hold all codes of four letters in 160 kB
        if (found := drawn.translate(_LETTERS)[:letters].decode()) not in within:
            return number, found
        number += 1


# The forms that tokenizers give their own marks (tests/unit/test_attacks.py has those of forty
# families): <|name|>, <name_or_1>, <name:of>, <name|>, [|name|], [NAME], >>NAME<<, ### Name:
_MARK = re.compile(
    r"[<\uff1c](?=[|\uff5c]|</?SYS>>)"
    r"|[<\uff1c]/?(?P<angle>\w[\w:.-]{0,60})(?P<bar>[|\uff5c]?)[>\uff1e]"
    r"|\[(?=\||e~\[)|\](?=~)"
    r"|\[/?(?P<square>\w{2,40})\]"
    r"|>(?=>[A-Z]{3,30}<<)"
    r"|^\#{2,3}(?= ?(?:instruction|response|input|system|user|human|assistant)\b ?:)",
    re.I | re.M,
)
_ANGLE = frozenset(
    "s bos eos pad unk cls sep mask sot eot eom sop eop sod eod eoh eoa human user assistant system"
    " ai bot model think thinking thought tool tools function image img audio video box ref"
    " quad role turn inst sys gmask smask endoftext startoftext".split()
)
_SQUARE = frozenset(
    "inst sys mask gmask smask cls sep pad unk bos eos sop eop bot user human assistant system ai"
    " img audio think args prefix suffix middle transcribe tool tools available_tools tool_calls"
    " tool_results tool_content system_prompt model_settings call_id go stop begin_audio".split()
)
_NUMBERED = re.compile(r"(?:unused|control|special|reserved|unused_token|img|audio)_?\w*")


def inert(text: str) -> str:
    """The text with a blank in every mark that a chat template writes between turns (`<|im_end|>`
    -> `< |im_end|>`).

    A server's tokenizer takes such a mark for the end of a turn wherever it stands, so quoted text
    could speak as another role.
    """
    # every text that _MARK finds something in has one of these; `in` is the fastest way to tell
    may = "<" in text or "[" in text or "]~" in text or ">>" in text or "##" in text
    if not may and "\uff1c" not in text:
        return text

    def broken(m: re.Match[str]) -> str:
        return m[0][0] + " " * _is_mark(*m.group("angle", "bar", "square")) + m[0][1:]

    return _MARK.sub(broken, text)


def inert_turns(messages: Messages) -> Messages:
    """A conversation of the rows, to be sent as it is: its turns are inert."""
    return tuple(Message(role=m["role"], content=inert(m["content"])) for m in messages)


@lru_cache(maxsize=512)  # a hostile text is full of one
def _is_mark(angle: str | None, bar: str | None, square: str | None) -> bool:
    """Whether what has the form of a mark is one: `<b>`, `<h1>` and `[1]` are not."""
    if angle:
        known = bool(bar) or angle.lower() in _ANGLE or not angle.isascii()
        return known or re.search(r"[_:\d-]", re.sub(r"^[hH][1-6]$", "", angle)) is not None
    if square:
        return square.lower() in _SQUARE or _NUMBERED.fullmatch(square.lower()) is not None
    return True


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import StrictUndefined  # here: `mora-data --help` needs no templates
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=lambda value: inert(value) if isinstance(value, str) else value,
    )
