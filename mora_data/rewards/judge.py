"""An LLM judge: one call per rollout and dimension, a rubric of five named levels, a JSON verdict.

The shipped dimensions share their template, which names the dimension behind the answer: a server
with prefix caching reads the answer once for all of them. With `together: true` they share the
call: the judges of the dimensions send the same request, which is asked once, and each reads its
own number of {"helpful": n, "harmless": n, "truthful": n}.

The reply must end with one verdict, `{"score": 1..5}`, and hold no other one that differs: a judge
may quote the answer it grades, before its verdict or after it, and then nobody can tell which of
two is its own. So the last one counts only where it is alone or all agree, and only at the end: a
number quoted in the middle of prose is not a verdict. A whole reply may be a verdict in another
form: 4, "4/5", `Score: 4`, {"rating": 4}, [{"score": 4}], {"result": {"score": 4}}. No level is
4.5. In doubt the score is None and the judge is asked again, twice. Nothing unreadable ever becomes
a number. Scale: likert, (s - 1) / 4.

With `expected: true` the score is the mean of the levels under the probabilities that the server
gives for the score token, sum s p(s) / sum p(s), raw in [1, 5] (docs/method.md, Scores
to rewards); the level itself
where it gives none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from pydantic import model_validator

from ..engines.replies import json_objects, reads_reply
from ..errors import SettingsError
from ..resources import Secret, load_template, names, quoted
from ..run.tasks import all_of
from ..settings import BuildSettings, RewardSettings, RoleSettings
from ..settings import Settings as PluginSettings
from ..text import one_line, unwrap
from ..types import Answer, Messages, Request, Rollout, Sampling, Score
from . import Ask, Reward, RewardContext
from . import load as load_reward

LEVELS = 5
SHIPPED = ("helpful", "harmless", "truthful")  # whose rubrics are in `together`
SCORE = "score"
# under a schema a weak model may fill its tokens with white space; not under this
PATTERN = r'\{"score": [1-5]\}'
RETRIES = 2
FRESH_TEMPERATURE = 0.7
TOP_LOGPROBS = 10
EXPECTED_PASS = 0.625  # a mean that is nearest to level 4 or 5: few means reach 4 itself
VARIABLES = frozenset(("question", "history", "answer", "nonce", "reverse", "dimension"))
_LEVEL = {"type": "integer", "minimum": 1, "maximum": LEVELS}
SCHEMA = {
    "type": "object",
    "properties": {SCORE: _LEVEL},
    "required": ["score"],
    "additionalProperties": False,
}
TOGETHER = {
    "type": "object",
    "properties": dict.fromkeys(SHIPPED, _LEVEL),
    "required": list(SHIPPED),
    "additionalProperties": False,
}
TOGETHER_PATTERN = r"\{" + ", ".join(f'"{d}": [1-5]' for d in SHIPPED) + r"\}"
_BARE = re.compile(r'\s*\{\s*"score"\s*:\s*([0-9])\s*\}\s*')
# what may follow the verdict
_AFTER = re.compile(r"(?:\s|```|\*\*|\.|</s>|<\|[\w ]{1,20}\|>|<(?:end_of_turn|eos)>)*")
_NAMES = ("rating", "grade", "level", "verdict")  # for a score, where nothing is called that
_SAID = re.compile(
    rf'"?(?:(?:final |overall )?(?:score|{"|".join(_NAMES)})"?\s*[:=]\s*)?"?(?:\[\[)?'
    r'([0-9])(?:\.0+)?(?:\]\])?(?:\s*(?:/|out of)\s*([0-9]))?"?\.?',
    re.I,
)
_BLANKS = dict.fromkeys(map(ord, " \t\r\n\f\v\u00a0\\"))
THOUGHT_CUT_OFF = "thought_cut_off"
_LETTER = re.compile("[A-Za-z]")
_DIGIT = re.compile(r'[\s":]*(\d)\D*')


class Judge:
    """Scores one dimension with one rubric template."""

    class Settings(PluginSettings):
        """Settings of the kind `judge`."""

        template: str | None = None
        """A rubric in templates/judge/ (without .j2), or a path; null: the dimension's own.
        `shared` is a line behind the answer, for helpful, harmless and truthful."""
        expected: bool = False
        """The mean of the levels under the probabilities of the score token, where the server
        gives them."""
        together: bool = False
        """One call scores an answer in helpful, harmless and truthful: a third of the calls, but
        the model sees its first score when it gives the next."""

        @model_validator(mode="after")
        def _fits_together(self) -> Judge.Settings:
            if self.together and (self.expected or self.template):
                raise ValueError("together has a template of its own and gives whole levels alone")
            if self.template == "together":
                raise ValueError("template together: say `together: true` in place of it")
            if self.template in ("pairwise", "rubric"):
                raise ValueError(f"template {self.template} is for `kind: {self.template}`")
            return self

    pass_threshold: float | None = 0.75
    calibration = "likert"

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        self.dimension = dimension
        named = "together" if options.together else options.template
        if named in ("together", "shared") and dimension not in SHIPPED:
            raise SettingsError(
                f"rewards.{dimension}: `{named}` is for {', '.join(SHIPPED)}: write a rubric of"
                f" your own and name it, template: rubrics/{dimension}.j2 (docs/add-your-own.md)"
            )
        if not named and dimension not in names("templates", "judge/*.j2"):
            raise SettingsError(
                f"dimension {dimension!r} has no rubric of its name: write one and name it,"
                f" rewards.{dimension}.template=rubrics/{dimension}.j2 (docs/add-your-own.md)"
            )
        self._template = load_template(
            "judge", named or dimension, VARIABLES, ["answer"], {"dimension": dimension}
        )
        stem = self._template.name.rpartition("/")[2] if named else dimension
        self.name = f"judge:{stem}{context.suffix}"
        self._expected = options.expected
        self.step = 0.0 if options.expected else 1 / (LEVELS - 1)
        if options.expected:
            self.pass_threshold = EXPECTED_PASS
        self.fingerprint = self._template.sha256
        self._role = context.role
        self._sampling = verdict_sampling(context.model, 1, TOP_LOGPROBS if options.expected else 0)
        self._key = SCORE
        if options.together:
            self._key = dimension
            self._sampling = replace(self._sampling, schema=TOGETHER, pattern=TOGETHER_PATTERN)
        self._secret = context.secret

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        return await all_of(self._score(ask, prompt_id, messages, a, purpose) for a in answers)

    async def _score(
        self, ask: Ask, prompt_id: str, messages: Messages, answer: str, purpose: str
    ) -> Score:
        asked = self._template.render(
            {
                **quoted(self._secret, messages, answer=answer),
                "reverse": is_fresh(purpose),
                "dimension": self.dimension,
            }
        )
        level, reason, reply = await ask_verdict(
            ask,
            Request(self._role, asked, self._sampling, purpose, prompt_id),
            texts_of(messages, answer),
            key=self._key,
        )
        if level is None or reply is None:
            return Score(self.dimension, self.name, None, None, reason)
        raw = expected_level(reply, said=level) if self._expected else None
        raw = float(level) if raw is None else raw
        return Score(self.dimension, self.name, (raw - 1) / (LEVELS - 1), raw)


def is_fresh(purpose: str) -> bool:
    """Whether a purpose (repeat, confirm) wants another measurement than the first."""
    return not purpose.startswith("score")


def texts_of(messages: Messages, *answers: str) -> list[str]:
    """The texts that a judge is shown."""
    return [*(m["content"] for m in messages), *answers]


def verdict_sampling(
    role: RoleSettings, lowest: int, logprobs: int = 0, highest: int = LEVELS
) -> Sampling:
    """How a verdict of `lowest` .. `highest` is asked for."""
    level = {"type": "integer", "minimum": lowest, "maximum": highest}
    return Sampling(
        role.temperature,
        role.top_p,
        role.max_tokens,
        tuple(role.stop),
        {**SCHEMA, "properties": {SCORE: level}},
        PATTERN.replace("1-5", f"{lowest}-{highest}"),
        logprobs,
    )


async def ask_verdict(
    ask: Ask,
    request: Request,
    shown: Sequence[str],
    lowest: int = 1,
    highest: int = LEVELS,
    key: str = SCORE,
) -> tuple[int | None, str, Answer | None]:
    """The verdict that a judge gives on the texts `shown`, asked again while it is unreadable; or
    None, why, and the last reply."""
    reason = ""
    for retry in range(RETRIES + 1):
        (reply,) = await ask(
            as_retry(request, retry) if retry or is_fresh(request.purpose) else request
        )
        if reply.error is not None:
            return None, reply.error, None
        level, reason = verdict(reply, lowest, highest, shown, key)
        if level is not None:
            return level, "", reply
    detail = (
        f"max_tokens = {request.sampling.max_tokens} went into the model's thoughts, raise it"
        if reason == THOUGHT_CUT_OFF
        else f"'{one_line(reply.text, 60)}'"
    )
    return None, f"{reason}: {detail}", None


def as_retry(request: Request, retry: int) -> Request:
    """The request as a fresh measurement, warmer and under a purpose of its own."""
    sampling = request.sampling
    return replace(
        request,
        sampling=replace(sampling, temperature=max(sampling.temperature, FRESH_TEMPERATURE)),
        purpose=f"{request.purpose}:retry:{retry}" if retry else request.purpose,
    )


@reads_reply((None, "no_verdict"))
def verdict(
    reply: Answer,
    lowest: int = 1,
    highest: int = LEVELS,
    shown: Sequence[str] = (),
    key: str = SCORE,
) -> tuple[int | None, str]:
    """The level in a judge's reply, or None and why not: no_verdict, cut_off, thought_cut_off,
    quoted_verdict, conflicting_verdicts, verdict_not_last. One that stands in the texts that the
    judge was shown is a quotation and does not count. `key`: the number's name in the verdict; one
    of several has to be named."""
    text = reply.text
    if key == SCORE and (bare := _BARE.fullmatch(text)):  # as nearly all are
        level = int(bare[1])
        if not lowest <= level <= highest:
            return None, why_unread(reply)
        said = f'{{"score":{level}}}'
        quotes = _stands_in(said, shown, lambda at: shown[at].translate(_BLANKS))
        return (None, "quoted_verdict") if quotes else (level, "")
    found = (key == SCORE and _whole(text, highest)) or _scores(text, highest, key)
    is_quoted = quoted_in(shown)
    levels: list[int] = []
    seen = last = 0
    for scores, start, end in found:
        fit = [s for s in scores if lowest <= s <= highest]
        seen += len(fit)
        if fit and not is_quoted(text[start:end]):
            levels, last = levels + fit, end
    if not levels:
        return None, "quoted_verdict" if seen else why_unread(reply)
    if len(set(levels)) > 1:
        return None, "conflicting_verdicts"
    if not _AFTER.fullmatch(text, last):
        return None, "verdict_not_last"
    return levels[-1], ""


def why_unread(reply: Answer) -> str:
    """Why a reply without a verdict has none, as far as its end tells."""
    if reply.finish_reason != "length":
        return "no_verdict"
    return THOUGHT_CUT_OFF if reply.tokens_out and not reply.text else "cut_off"


def quoted_in(shown: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether a verdict stands in a text that the judge was shown, but for what it is wrapped
    in, white space and backslashes; at the end of one, but for its last brace. A number alone
    stands in many a text and is no quotation."""

    packed = cache(lambda at: shown[at].translate(_BLANKS))

    @cache  # a reply may say the same thousands of times
    def is_quoted(said: str) -> bool:
        bare = unwrap(said).translate(_BLANKS)
        return _LETTER.search(said) is not None and _stands_in(bare, shown, packed)

    return is_quoted


def _stands_in(bare: str, shown: Sequence[str], packed: Callable[[int], str]) -> bool:
    """Whether a verdict without its blanks stands in a text; `packed` gives a text without them."""
    end = bare.rstrip("}")
    for at, text in enumerate(shown):
        # a look at two signs that it would have to have costs less than packing it
        if ('"' in text or '"' not in bare) and ("{" in text or "{" not in end):
            found = packed(at)
            if bare in found or found.endswith(end):
                return True
    return False


@reads_reply(None)
def expected_level(reply: Answer, said: int | None = None) -> float | None:
    """Mean of the levels under the probabilities of the last token that begins with a digit (with
    `said`: with that one); None where none are given."""
    for token, top in reversed(reply.logprobs or ()):
        level = _level_of(token)
        if level is None or (said is not None and level != said):
            continue
        weights: dict[int, float] = {}
        for alternative, logprob in top:
            level = _level_of(alternative)
            if level is not None and not math.isnan(logprob):
                weights[level] = weights.get(level, 0.0) + math.exp(min(logprob, 0.0))
        total = math.fsum(weights.values())
        return math.fsum(s * w for s, w in weights.items()) / total if total > 0 else None
    return None


def _level_of(token: str) -> int | None:
    found = _DIGIT.fullmatch(token)
    return int(found[1]) if found and 1 <= int(found[1]) <= LEVELS else None


def _whole(text: str, highest: int) -> list[tuple[list[int], int, int]]:
    """The score of a reply that is nothing but a verdict, in a known wrapper or form, as `_scores`
    gives it; empty where it is more than that."""
    inner = unwrap(text).replace("**", "")
    try:
        value = json.loads(inner, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        value = inner
    for _ in range(2):  # [{"score": 4}], {"result": {"score": 4}}
        if isinstance(value, list) and len(value) == 1:
            part = value[0][1] if isinstance(value, _Object) else value[0]
            value = part if isinstance(part, list) else value
    if isinstance(value, _Object):
        scores = value.scores(highest)
    else:
        score = _number(inner if isinstance(value, list) else value, highest)
        scores = [] if score is None else [score]
    return [(scores, 0, len(text))] if scores else []


def _scores(text: str, highest: int, key: str) -> list[tuple[list[int], int, int]]:
    """The whole-number values of `key` in the text's outermost JSON objects, in order, each with
    where its object begins and ends."""
    objects = json_objects(text, json.JSONDecoder(object_pairs_hook=_Object))
    found = ((value.scores(highest, key), start, end) for value, start, end in objects)
    return [(scores, start, end) for scores, start, end in found if scores]


class _Object(list[tuple[str, object]]):
    """A JSON object, key by key."""

    def scores(self, highest: int, wanted: str = SCORE) -> list[int]:
        """Every whole-number `wanted`: a key that is there twice is as doubtful as two objects. The
        only number under another known name, where nothing is called a score."""
        named: list[tuple[str, int]] = []
        for key, value in self:
            score = _number(value, highest)
            if score is not None:
                named.append((key.lower(), score))
        found = [score for name, score in named if name == wanted]
        others = [score for name, score in named if wanted == SCORE and name in _NAMES]
        return found or (others if len(others) == 1 else [])


def _number(value: object, highest: int) -> int | None:
    """4, 4.0, "4" or "4/5" as a whole number; of another scale, or half of one, None."""
    if isinstance(value, str):
        said = _SAID.fullmatch(value.strip())
        return int(said[1]) if said and said[2] in (None, str(highest)) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # neither infinite nor of more digits than a float can hold
    return int(value) if abs(value) <= 1e6 and value == int(value) else None


# the held-out judge: another model that scores the confirmed pairs; it selects nothing

HELDOUT_ROLE = "heldout_judge"
# asked like a first score: temperature of the role, levels in their usual order
HELDOUT_PURPOSE = "score:heldout"


def heldout_judges(settings: BuildSettings, secret: Secret) -> dict[str, Reward]:
    """One judge per dimension, with the rubric of the dimension's first judge; empty when no
    held-out judge is set.

    Raises:
        SettingsError: a dimension has no rubric.
    """
    if settings.heldout_judge is None:
        return {}
    settings.role(HELDOUT_ROLE)  # says at once where it is missing
    out = {}
    for d in settings.dimensions:
        rubrics = [r.options for r in settings.reward_sources(d) if r.kind == "judge"]
        rubric = (
            {"template": rubrics[0]["template"]} if rubrics and "template" in rubrics[0] else {}
        )
        judge = RewardSettings.model_validate(rubric)
        out[d] = load_reward(d, judge, settings, HELDOUT_ROLE, secret)
    return out


async def second_opinion(
    ask: Ask,
    judges: Mapping[str, Reward],
    messages: Messages,
    rollouts: Sequence[Rollout],
    sides: Sequence[int],
) -> list[tuple[int, Score]]:
    """(position, score) of the rollouts at `sides`, in each dimension."""
    if not sides:
        return []
    texts = [rollouts[i].text for i in sides]
    columns = await all_of(
        j.scores(ask, rollouts[0].prompt_id, messages, texts, HELDOUT_PURPOSE)
        for j in judges.values()
    )
    return [(sides[k], s) for column in columns for k, s in enumerate(column)]
