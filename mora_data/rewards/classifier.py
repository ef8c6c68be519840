"""A sequence classifier or reward model: one forward pass per answer, a number per label.

The reply is the raw outputs as a JSON list. What becomes of the one that is this dimension's:

    activation: sigmoid    a probability: value, pass threshold 0.5; raw is the logit
    activation: softmax    a probability: value and raw, pass threshold 0.5
    range: [low, high]     value = (x - low) / (high - low); up to an eighth of the range beyond an
                           end counts as that end
    neither                raw only: the calibration gives the value, and no pass threshold holds
                           across prompts

`invert` negates first, so that raw is always higher = better. Known models are in `FAMILIES`;
settings go before the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..engines.replies import reads_reply
from ..errors import SettingsError
from ..resources import inert, inert_turns
from ..run.tasks import all_of
from ..settings import Settings as PluginSettings
from ..settings import nearest
from ..text import digest
from ..types import Answer, Message, Messages, Request, Sampling, Score
from . import UNCALIBRATED, Ask, RewardContext, missing

GREEDY = Sampling(0.0, 1.0, 1)
SLACK = 0.125  # of the range: a regression may overshoot by half a step of 0..4
_ROLE_NAMES = {"user": "USER", "assistant": "ASSISTANT"}


class Classifier:
    """A reward model behind /classify or /pooling: its own scale, a probability, or a bare logit to
    be calibrated."""

    class Settings(PluginSettings):
        """Settings of the kind `classifier`."""

        family: str | None = None
        """A known model: beaver-reward, beaver-cost, armorm, skywork, helpsteer."""
        task: Literal["classify", "pooling"] = "classify"
        """Which path of the server is asked."""
        labels: tuple[str, ...] = ()
        """Names of the outputs, in order; a reply with another number of outputs is no score."""
        label: str | None = None
        """The output that is this dimension's."""
        activation: Literal["sigmoid", "softmax"] | None = None
        """Makes a probability of the raw output."""
        invert: bool = False
        """Higher is worse."""
        layout: str | None = None
        """The text that is rated, with {question} and {answer}; null: the server applies the
        model's chat template."""
        range: tuple[float, float] | None = None
        """Lowest and highest value of the model's own scale."""

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        self.dimension = dimension
        self._family = family = _family(options)
        self._label = _label(dimension, options, family)
        self.name = f"{options.family or 'classifier'}:{self._label}{context.suffix}"
        self.pass_threshold = family.pass_threshold
        self.calibration = family.calibration
        self.step = family.step
        self.fingerprint = digest("classifier", repr(family), self._label, options.task)
        self._role = context.role
        self._task = options.task

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        return await all_of(self._score(ask, prompt_id, messages, a, purpose) for a in answers)

    async def _score(
        self, ask: Ask, prompt_id: str, messages: Messages, answer: str, purpose: str
    ) -> Score:
        if not answer.strip():
            return missing(self, "empty")
        rated = as_asked(messages, answer, self._family.layout)
        (reply,) = await ask(
            Request(self._role, rated, GREEDY, purpose, prompt_id, task=self._task)
        )
        if reply.error is not None:
            return missing(self, reply.error)
        raw, value, reason = self.read(reply)
        return Score(self.dimension, self.name, value, raw, reason)

    @reads_reply((None, None, "not_numbers"))
    def read(self, reply: Answer) -> tuple[float | None, float | None, str]:
        """(raw, value, reason) of the dimension's own output, as the outputs in a reply say."""
        outputs, reason = self._outputs(reply)
        return self._valued(outputs) if not reason else (None, None, reason)

    def _outputs(self, reply: Answer) -> tuple[list[float], str]:
        """The finite outputs, or why there are none."""
        outputs = json.loads(reply.text)
        if not isinstance(outputs, list) or not outputs:
            return [], "no_output"
        expected = len(self._family.labels)
        if expected and len(outputs) != expected:
            return [], f"label_count: {len(outputs)} outputs, {expected} labels"
        if not expected and not 0 <= int(self._label) < len(outputs):
            return [], f"label_count: {len(outputs)} outputs, label {self._label}"
        if any(
            isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x)
            for x in outputs
        ):
            return [], "not_finite"
        return [float(x) for x in outputs], ""

    def _valued(self, outputs: Sequence[float]) -> tuple[float, float | None, str]:
        """(raw, value, reason) of the dimension's own output."""
        family = self._family
        x = outputs[family.labels.index(self._label) if family.labels else int(self._label)]
        raw = -x if family.invert else x
        if family.activation == "sigmoid":
            return raw, sigmoid(raw), ""
        if family.activation == "softmax":
            top = max(outputs)
            share = math.exp(x - top) / math.fsum(math.exp(o - top) for o in outputs)
            value = 1 - share if family.invert else share
            return value, value, ""
        if family.range is None:
            return raw, None, UNCALIBRATED
        low, high = family.range
        value = (x - low) / (high - low)
        if not -SLACK <= value <= 1 + SLACK:
            return raw, None, f"out_of_range: {x:g} is not in {low:g} to {high:g}"
        value = min(max(value, 0.0), 1.0)
        return raw, 1 - value if family.invert else value, ""


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def as_asked(messages: Messages, answer: str, layout: str | None) -> Messages:
    """The conversation with the answer; with a layout, one message that holds the whole text.

    Earlier turns stand before the question as `USER: ... ASSISTANT:...`, as Beaver's package joins
    them, without its end marks: those are a tokenizer's.
    """
    if layout is None:
        return inert_turns((*messages, Message(role="assistant", content=answer)))
    messages, answer = inert_turns(messages), inert(answer)
    before = "".join(
        f"{m['content']} ASSISTANT:" if m["role"] == "user" else f"{m['content']} USER: "
        for m in messages[:-1]
        if m["role"] in _ROLE_NAMES
    )
    head, _, rest = layout.partition("{question}")
    middle, _, tail = rest.partition("{answer}")
    return (
        Message(
            role="user",
            content="".join((head, before, messages[-1]["content"], middle, answer, tail)),
        ),
    )


def _family(options: Classifier.Settings) -> Family:
    """The table's entry, with what the settings say in place of it.

    Raises:
        SettingsError: no such family, or settings that contradict each other.
    """
    if options.family is not None and options.family not in FAMILIES:
        raise SettingsError(
            f"unknown classifier family {options.family!r}: {nearest(options.family, FAMILIES)}"
        )
    family = FAMILIES[options.family] if options.family else Family()
    if options.layout is not None and not 0 <= options.layout.find(
        "{question}"
    ) < options.layout.find("{answer}"):
        raise SettingsError(f"layout {options.layout!r} must hold {{question}} and then {{answer}}")
    own = options.model_fields_set
    if "labels" in own:
        family = replace(family, labels=options.labels, dims={})
    if "layout" in own:
        family = replace(family, layout=options.layout)
    if "invert" in own:
        family = replace(family, invert=options.invert)
    if options.activation:
        return replace(
            family,
            activation=options.activation,
            range=None,
            calibration="identity",
            pass_threshold=0.5,
        )
    if options.range:
        if options.range[0] >= options.range[1]:
            raise SettingsError(f"range {list(options.range)} must rise, as in [0, 4]")
        return replace(
            family, activation=None, range=options.range, calibration="identity", pass_threshold=0.5
        )
    return family


def _label(dimension: str, options: Classifier.Settings, family: Family) -> str:
    """Which output is the dimension's: a name among the labels, or a number where they have no
    names."""
    label = options.label or family.dims.get(dimension)
    if label is None and len(family.labels) <= 1:
        label = family.labels[0] if family.labels else "0"
    if label is None:
        raise SettingsError(
            f"reward of {dimension}: `label` must say which output it is"
            f" ({', '.join(family.labels)})"
        )
    if family.labels and label not in family.labels:
        raise SettingsError(
            f"reward of {dimension}: no output {label!r}: {nearest(label, family.labels)}"
        )
    if not family.labels and not label.isdigit():
        raise SettingsError(
            f"reward of {dimension}: label {label!r} needs `labels`, the names of all outputs; or"
            " give its number"
        )
    return label


# known sequence classifiers: what their outputs are and what scale they have

# no blank after the last colon
BEAVER = "BEGINNING OF CONVERSATION: USER: {question} ASSISTANT:{answer}"


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of classifier.

    Attributes:
        labels: names of the outputs, in order; empty: any number of them, without names.
        dims: dimension -> label, where a dimension has a usual one.
        activation: sigmoid or softmax, or None.
        invert: higher is worse.
        range: ends of the outputs' own scale.
        layout: text that is rated; None: the server's chat template.
        calibration: see `Reward`.
    """

    labels: tuple[str, ...] = ()
    dims: Mapping[str, str] = field(default_factory=dict)
    activation: str | None = None
    invert: bool = False
    range: tuple[float, float] | None = None
    layout: str | None = None
    calibration: str = "ecdf"
    pass_threshold: float | None = None
    step: float = 0.0


ARMORM = tuple(
    (
        "helpsteer-helpfulness helpsteer-correctness helpsteer-coherence helpsteer-complexity"
        " helpsteer-verbosity ultrafeedback-overall_score ultrafeedback-instruction_following"
        " ultrafeedback-truthfulness ultrafeedback-honesty ultrafeedback-helpfulness"
        " beavertails-is_safe prometheus-score argilla-overall_quality argilla-judge_lm"
        " code-complexity code-style code-explanation code-instruction-following code-readability"
    ).split()
)

FAMILIES = {
    "beaver-reward": Family(
        ("reward",), {"helpful": "reward"}, layout=BEAVER, calibration="anchored"
    ),
    "beaver-cost": Family(
        ("cost",),
        {"harmless": "cost"},
        "sigmoid",
        invert=True,
        layout=BEAVER,
        calibration="sigmoid",
        pass_threshold=0.5,
    ),
    "armorm": Family(
        ARMORM,
        {
            "helpful": "ultrafeedback-helpfulness",
            "harmless": "beavertails-is_safe",
            "truthful": "ultrafeedback-truthfulness",
        },
    ),
    "skywork": Family(("reward",), {"helpful": "reward"}, calibration="anchored"),
    "helpsteer": Family(
        ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        {"helpful": "helpfulness", "truthful": "correctness"},
        range=(0.0, 4.0),
        calibration="identity",
        pass_threshold=0.75,
    ),
}
