"""Prompt templates: Jinja in a sandbox, undefined variables refused, one block per chat message.

A template file holds `{% block system %}...{% endblock %}` (optional) and `{% block user %}...{%
endblock %}`; text that comes from a dataset or a model only ever enters as a variable, so it can
neither open a block nor run code.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from . import resources
from .errors import SettingsError
from .types import Message, Messages


class Template:
    """A chat template, checked when it is loaded.

    Attributes:
        name: how it was asked for.
        sha256: hash of the file's bytes, for manifests.
    """

    def __init__(self, name: str, source: str, known: frozenset[str]) -> None:
        env = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        self.name = name
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        try:
            tree = env.parse(source)
            _check_variables(name, tree, known)
            self._template = env.from_string(source)
        except TemplateError as e:
            raise SettingsError(f"template {name}: {e} (line {getattr(e, 'lineno', '?')})") from e
        self._blocks = self._template.blocks
        self._globals = dict(self._template.globals)  # a ChainMap, slow to copy for each call
        if "user" not in self._blocks:
            raise SettingsError(
                f"template {name} has no {{% block user %}}: put the message to the model in one"
            )

    def render(self, variables: Mapping[str, object]) -> Messages:
        """The chat messages for these variables.

        Raises:
            SettingsError: a variable's attribute is undefined, or the sandbox refused an operation.
        """
        try:
            context = self._template.new_context({**self._globals, **variables}, shared=True)
            out = [
                Message(role=role, content="".join(self._blocks[role](context)).strip())
                for role in ("system", "user")
                if role in self._blocks
            ]
        except TemplateError as e:
            raise SettingsError(f"template {self.name}: {e}") from e
        return tuple(out)


def load(folder: str, name: str, known: frozenset[str]) -> Template:
    """Template `name` of templates/`folder`/, or the file at the path `name`; it may use the
    variables `known`.

    Raises:
        SettingsError: no such template, a syntax error, or variables that will not be there (all
            are named).
    """
    path = (
        Path(name)
        if name.endswith(".j2")
        else resources.folder("templates") / folder / f"{name}.j2"
    )
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        have = ", ".join(resources.names("templates", f"{folder}/*.j2"))
        raise SettingsError(
            f"no template {name!r} in templates/{folder}/ (there: {have}); or give a path that ends"
            " in .j2"
        ) from e
    return Template(f"{folder}/{path.stem}", source, known)


def nonce(seed: int, *content: str) -> str:
    """12 hex digits that delimit untrusted text: they stand nowhere in it, and are the same on
    every resume."""
    key, text = str(seed).encode(), "\x1f".join(content).encode("utf-8", "surrogatepass")
    found = hmac.digest(key, text, "sha256").hex()[:12]
    while found.encode() in text.lower():
        found = hmac.digest(key, found.encode() + text, "sha256").hex()[:12]
    return found


_CONTROL = re.compile(
    # <|im_start|>, <|eot_id|>, and with a full-width bar
    r"(?:<(?=[|\uff5c])"
    r"|<(?=/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|start_of_image|user|assistant|system|human|think|\|)>)"
    r"|<(?=<?/?SYS>)|\[(?=/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]))",
    re.I,
)


def inert(text: str) -> str:
    """The text with a blank in every mark that a chat template writes between turns (`<|im_end|>`
    -> `< |im_end|>`).

    A server's tokenizer takes such a mark for the end of a turn wherever it stands, so quoted text
    could speak as another role.
    """
    return _CONTROL.sub(lambda m: m[0] + " ", text) if "<" in text or "[" in text else text


def _check_variables(name: str, tree: nodes.Template, known: frozenset[str]) -> None:
    from jinja2 import meta

    missing = sorted(meta.find_undeclared_variables(tree) - known)
    if missing:
        raise SettingsError(
            f"template {name} uses undefined variable(s) {', '.join(missing)}; "
            f"it may use: {', '.join(sorted(known))}"
        )
