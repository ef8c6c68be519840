"""transformers models behind the batches: torch is imported with this module, in the worker thread.

`Generator` samples by inverse transform: one uniform number per row and step, drawn beforehand from
the row's own seed, picks the token from the row's own distribution. `generate` itself draws all
rows from one global generator, so a sample would depend on its neighbours; here they share nothing
but the arithmetic.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ..errors import SettingsError
from ..settings import LocalSettings
from ..text import one_line
from ..types import Answer, Messages, Request, Sampling
from .engine import Piece, checked_length, outputs_answer, templated
from .replies import Logprobs, as_answer


class _OnDevice:
    """What both kinds of models do alike."""

    _model: Any
    _device: torch.device

    def run(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        """The answers to each piece; all must have the same sampling. Memory that ran out is given
        back before that is raised.

        Raises:
            MemoryError: out of device memory.
        """
        try:
            with torch.inference_mode():
                return self._run(pieces)
        except torch.OutOfMemoryError as e:
            message = str(e).split(".")[0]
        self._empty()
        raise MemoryError(message)

    def close(self) -> None:
        del self._model
        self._empty()

    def _run(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        raise NotImplementedError

    def _empty(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class Generator(_OnDevice):
    """Chat answers of a causal model.

    Reproducible per sample: the same seed, prompt and sampling give the same text on the same
    machine, alone or in any batch, as far as the logits agree. They agree to rounding only: another
    batch size or more padding changes sums in their last bits, and where a draw falls within that
    distance of the boundary between two tokens, the sample takes the other one and goes its own way
    from there. That is rare in float32 and not rare in bfloat16. Batch sizes are found by timing,
    so a run from scratch may differ in such places; answers in the log are never made again.
    """

    def __init__(
        self, name: str, revision: str | None, settings: LocalSettings, stop: threading.Event
    ) -> None:
        self._tokenizer = _tokenizer(name, revision)
        if not self._tokenizer.chat_template:
            raise SettingsError(
                f"model {name} has no chat template: give an instruction-tuned model"
            )
        self._model, self._device = _load(AutoModelForCausalLM, name, revision, settings)
        self._limit = _limit(self._model.config, self._tokenizer, settings)
        self._stop = stop
        own = self._model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self._tokenizer.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        pad = self._tokenizer.pad_token_id
        self._pad = pad if pad is not None else (self._ends or [0])[0]
        self._model.generation_config = transformers.GenerationConfig(
            eos_token_id=self._ends or None, pad_token_id=self._pad
        )

    def encode(self, request: Request) -> list[int]:
        """The prompt's tokens, up to where the answer begins."""
        return _encode(self._tokenizer, request.messages, self._limit, True)

    def _run(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        sampling = pieces[0].request.sampling
        ids, mask = _padded([p.tokens for p in pieces], self._pad, self._device, left=True)
        room = [min(sampling.max_tokens, self._limit - len(p.tokens)) for p in pieces]
        picker = _Picker([p.seed for p in pieces], max(room), sampling, self._device)
        ended = _Ended(room, ids.shape[1], self._stop, self._device)
        stops: dict[str, Any] = {}
        if sampling.stop:
            stops = {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer}
        out = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(room),
            do_sample=False,
            logits_processor=[picker],
            stopping_criteria=[ended],
            **stops,
        )
        rows = out[:, ids.shape[1] :].tolist()
        return [
            (self._answer(row[:n], sampling, picker.logprobs(i, self._tokenizer)),)
            for i, (row, n) in enumerate(zip(rows, room, strict=True))
        ]

    def _answer(self, row: list[int], sampling: Sampling, logprobs: Logprobs | None) -> Answer:
        stops = sampling.stop
        end = next((i for i, t in enumerate(row) if t in self._ends), None)
        n = len(row) if end is None else end + 1
        text: str = self._tokenizer.decode(row[:n], skip_special_tokens=True)
        cut = min((at for s in stops if (at := text.find(s)) >= 0), default=None)
        # rows that end before the longest one are filled up: count what the text needed
        if cut is not None:
            decode = partial(self._tokenizer.decode, skip_special_tokens=True)
            texts = (decode(row[:i]) for i in range(1, n + 1))
            n = next((i for i, t in enumerate(texts, 1) if any(s in t for s in stops)), n)
        reason = "length" if end is None and cut is None else "stop"
        logprobs = None if logprobs is None else logprobs[:n]
        return as_answer(text[:cut], reason, n, logprobs, keep=sampling.thoughts)


class _Picker:
    """Chooses each row's next token and leaves only that one possible, so that greedy search takes
    it.

    A token is kept by `top_p` when the mass before it is under `top_p` (the first is always kept),
    as on vLLM. Log-probabilities are those of the model, before temperature and top_p.
    """

    def __init__(self, seeds: Sequence[int], steps: int, sampling: Sampling, device: Any) -> None:
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._top = sampling.logprobs
        self._step = 0
        self._logprobs: list[tuple[Any, Any, Any]] = []
        if self._temperature > 0:
            draws = [torch.rand(steps, generator=torch.Generator().manual_seed(s)) for s in seeds]
            self._draws_N_T = torch.stack(draws).to(device)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        logits = scores.float()
        if self._temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            chosen = self._sample(logits / self._temperature)
        if self._top:
            top = torch.log_softmax(logits, -1).topk(self._top)
            self._logprobs.append((chosen.cpu(), top.indices.cpu(), top.values.cpu()))
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)

    def _sample(self, logits: Any) -> Any:
        draw = self._draws_N_T[:, self._step : self._step + 1]
        probs, order = torch.softmax(logits, -1), None
        if self._top_p < 1:
            probs, order = probs.sort(dim=-1, descending=True, stable=True)
            probs = probs * (probs.cumsum(-1) - probs < self._top_p)
        mass = probs.cumsum(-1)
        at = torch.searchsorted(mass, draw * mass[:, -1:], right=True)
        # the last token that is possible at all
        last = (probs > 0).cumsum(-1).argmax(-1, keepdim=True)
        at = torch.minimum(at, last)
        return at if order is None else order.gather(-1, at)

    def logprobs(self, row: int, tokenizer: Any) -> Logprobs | None:
        """What was recorded for a row, step by step; None where nothing was asked for."""
        if not self._top:
            return None
        text = tokenizer.decode
        steps = []
        for chosen, ids, values in self._logprobs:
            top = zip(ids[row].tolist(), values[row].tolist(), strict=True)
            steps.append((text([int(chosen[row, 0])]), tuple((text([i]), v) for i, v in top)))
        return tuple(steps)


class _Ended:
    """Ends a row at its own last token, and every row when the build stops."""

    def __init__(
        self, room: Sequence[int], prompt: int, stop: threading.Event, device: Any
    ) -> None:
        self._room = torch.tensor(room, device=device)
        self._prompt = prompt
        self._stop = stop

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        if self._stop.is_set():
            return torch.ones_like(self._room, dtype=torch.bool)
        return self._room <= input_ids.shape[1] - self._prompt


class SequenceClassifier(_OnDevice):
    """Raw outputs of a sequence classifier, a reward model: a JSON list for each piece."""

    def __init__(self, name: str, revision: str | None, settings: LocalSettings) -> None:
        self._tokenizer = _tokenizer(name, revision)
        self._pair = not self._tokenizer.chat_template
        if self._pair and not settings.text_pair:
            raise SettingsError(
                f"classifier {name} has no chat template: set local.text_pair=true to give it the"
                " turns before the answer and the answer as a pair of texts, if it was trained so"
            )
        self._model, self._device = _load(
            AutoModelForSequenceClassification, name, revision, settings
        )
        self._limit = _limit(self._model.config, self._tokenizer, settings)

    def encode(self, request: Request) -> list[int]:
        """The tokens of a conversation that ends with the answer."""
        if not self._pair:
            return _encode(self._tokenizer, request.messages, self._limit, False)
        ids: list[int] = self._tokenizer(*_pair(request.messages), verbose=False)["input_ids"]
        return checked_length(ids, self._limit, False)

    def _run(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        if self._pair:  # the tokenizer knows which tokens belong to which text
            texts, answers = zip(*(_pair(p.request.messages) for p in pieces), strict=True)
            inputs = self._tokenizer(
                list(texts), list(answers), padding=True, return_tensors="pt"
            ).to(self._device)
        else:
            self._model.config.pad_token_id = pad = self._padding(pieces)
            ids, mask = _padded([p.tokens for p in pieces], pad, self._device, left=False)
            inputs = {"input_ids": ids, "attention_mask": mask}
        logits_N_L = self._model(**inputs).logits.float().cpu()
        return [(outputs_answer(row),) for row in logits_N_L.tolist()]

    def _padding(self, pieces: Sequence[Piece]) -> int:
        """A token that no text of the batch holds: decoder classifiers read their output at the
        last token that is not padding, and a padding token equal to the end-of-turn token would
        move that place."""
        used = {t for p in pieces for t in p.tokens}
        own = self._tokenizer.pad_token_id
        if own is not None and own not in used:
            return int(own)
        vocabulary = range(self._model.config.get_text_config().vocab_size)
        return next(t for t in reversed(vocabulary) if t not in used)


def _pair(messages: Messages) -> tuple[str, str]:
    """The turns before the answer, and the answer."""
    return "\n\n".join(m["content"] for m in messages[:-1]), messages[-1]["content"]


def _tokenizer(name: str, revision: str | None) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as e:
        raise SettingsError(
            f"model {name} can't be read ({one_line(e)}): give a folder or the"
            " name of a model on the Hub"
        ) from e


def _load(kind: Any, name: str, revision: str | None, settings: LocalSettings) -> tuple[Any, Any]:
    transformers.utils.logging.disable_progress_bar()  # the progress line is ours
    device, dtype = settings.device, settings.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        made, report = kind.from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
        model = made.to(device).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise SettingsError(f"model {name} can't be loaded on {device} ({one_line(e)})") from e
    missing = sorted(report["missing_keys"])
    if missing:
        raise SettingsError(
            f"model {name} has no weights for {missing[0]} ({len(missing)} missing): it is no model"
            " for this task"
        )
    return model, torch.device(device)


def _encode(tokenizer: Any, messages: Messages, limit: int, answer_follows: bool) -> list[int]:
    text = templated(tokenizer, messages, answer_follows)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return checked_length(ids, limit, answer_follows)


def _limit(config: Any, tokenizer: Any, settings: LocalSettings) -> int:
    """Longest sequence, in tokens."""
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = (own, tokenizer.model_max_length, settings.max_length, 1 << 20)
    return int(min(x for x in limits if x is not None and x > 0))


def _padded(rows: Sequence[Sequence[int]], pad: int, device: Any, left: bool) -> tuple[Any, Any]:
    """ids_N_T and its mask."""
    pad_to = partial(pad_sequence, batch_first=True, padding_side="left" if left else "right")
    ids = pad_to([torch.tensor(r) for r in rows], padding_value=pad)
    mask = pad_to([torch.ones(len(r), dtype=torch.long) for r in rows])
    return ids.to(device), mask.to(device)
