"""Intent fusion: the rewriter makes one question that needs several virtues; checks decide, failed ones are named on retry."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..config import BuildSettings
from ..rewards.asking import Ask
from ..templating import load as load_template
from ..templating import nonce
from ..text import seed_of
from ..types import Answer, Message, Messages, Prompt, Request, Sampling
from . import checks
from .intents import load_intents
from .outcome import FusionTry

if TYPE_CHECKING:
    from ..statistics import Profile

VARIABLES = frozenset(("prompt", "history", "carried_dim", "target_dims", "dim_specs", "category", "style", "budget", "language",
                       "forbidden", "n_candidates", "feedback", "nonce"))
INTENT = {"type": "object", "properties": {"dim": {"type": "string"}, "span": {"type": "string"}},
          "required": ["dim", "span"], "additionalProperties": False}
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {"rewritten": {"type": "string"}, "subject": {"type": "string"},
                   "intents": {"type": "array", "items": INTENT}, "refused": {"type": "boolean"}},
    "required": ["rewritten", "subject", "intents", "refused"], "additionalProperties": False}
STYLES = {"register": ("plain", "chatty", "careful", "brisk"), "form": ("question", "request", "situation then question"),
          "length": ("short", "medium")}


class Fuser:
    """Fuses prompts with the templates of the settings' arms.

    Raises:
        SettingsError: a template or an intents file is missing or wrong.
    """

    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings
        arms = [a for a in settings.fuse.arms if a != "identity"]
        self.templates = {arm: load_template("fuse", arm, VARIABLES) for arm in arms}
        self._specs = load_intents(settings.dimensions, settings.fuse.intents) if arms else {}
        self.intents_sha256 = {d: hashlib.sha256(repr(spec).encode()).hexdigest() for d, spec in self._specs.items()}

    async def fuse(self, ask: Ask, prompt: Prompt, arm: str, profile: Profile | None, target_dims: Sequence[str],
                   leaks: Sequence[str]) -> tuple[Messages | None, list[FusionTry]]:
        """The fused conversation, or None when no try passed; with every try and what the checks said."""
        role = self._settings.role("rewriter")
        tries: list[FusionTry] = []
        feedback: list[str] = []
        for attempt in range(self._settings.fuse.retries + 1):
            sampling = Sampling(max(role.temperature, min(1.0, role.temperature + 0.2 * attempt)), role.top_p, role.max_tokens,
                                tuple(role.stop), SCHEMA)
            asked = self._render(prompt, arm, profile, target_dims, attempt, feedback)
            answers = await ask(Request("rewriter", asked, sampling, f"fuse:{arm}:{attempt}", prompt.prompt_id,
                                        self._settings.fuse.candidates))
            results = [self._judge(prompt, answer, leaks) for answer in answers]
            made = [self._try(arm, attempt, i, *r) for i, r in enumerate(results)]
            tries += made
            accepted = next((t for t in made if t.accepted), None)
            if accepted is not None:
                return (*prompt.messages[:-1], Message(role="user", content=accepted.text)), tries
            feedback = checks.feedback(results[0][1])
        return None, tries

    def _render(self, prompt: Prompt, arm: str, profile: Profile | None, target_dims: Sequence[str], attempt: int,
                feedback: Sequence[str]) -> Messages:
        low, high = checks.budget(prompt.text)
        style = {k: v[seed_of(self._settings.seed, prompt.prompt_id, k, attempt) % len(v)] for k, v in STYLES.items()}
        return self.templates[arm].render({
            "prompt": prompt.text, "history": prompt.messages[:-1], "carried_dim": profile.carried_dim if profile else None,
            "target_dims": list(target_dims), "dim_specs": self._specs, "category": prompt.category, "style": style,
            "budget": {"min": low, "max": high}, "language": "the language of the original question",
            "forbidden": [], "n_candidates": self._settings.fuse.candidates, "feedback": list(feedback),
            "nonce": nonce(self._settings.seed, prompt.prompt_id, prompt.text)})

    def _judge(self, prompt: Prompt, answer: Answer, leaks: Sequence[str]) -> tuple[str, list[checks.Check]]:
        if answer.error is not None:
            return "", [checks.Check("rewriter_failed", False, None, answer.error)]
        rewrite = checks.parse_rewrite(answer.text)
        text = rewrite if isinstance(rewrite, str) else rewrite.text
        return text, checks.check(prompt, rewrite, checks.budget(prompt.text), leaks)

    @staticmethod
    def _try(arm: str, attempt: int, candidate: int, text: str, done: Sequence[checks.Check]) -> FusionTry:
        failed = tuple(c.name for c in done if not c.passed)
        return FusionTry(arm, attempt, candidate, text, not failed, failed, tuple((c.name, c.passed, c.value) for c in done))
