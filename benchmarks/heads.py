"""A reward head: sentence embeddings and one linear layer, as a reward of a build.

    rewards:
      harmless:
        - {kind: "benchmarks.heads:Head", weights: runs/heads/harmless.npz, encoder: FOLDER}

`reward_heads.py` fits the weights and says how far they agree with people. FOLDER holds a sentence
encoder with mean pooling that transformers loads. A score is the chance that the answer's logit
beats that of a random answer of the rows that the head was fitted on: in (0, 1), the same for the
same text, and 0.5, the pass threshold, for a middling answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mora_data.errors import SettingsError
from mora_data.rewards import Ask, RewardContext
from mora_data.settings import Settings as PluginSettings
from mora_data.text import digest
from mora_data.types import Messages, Score

Floats = NDArray[np.float64]
MOST_TOKENS = 128
NORMAL = 1.702  # the logistic curve that is nearest to the normal one


class Encoder:
    """Texts to unit vectors: the mean of the encoder's last layer over the text's tokens."""

    def __init__(self, folder: str) -> None:
        import torch
        import transformers
        from transformers import AutoModel, AutoTokenizer

        transformers.utils.logging.disable_progress_bar()  # the build has its own
        torch.set_num_threads(1)  # a text of 128 tokens is too short for more: ten times slower
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        # Half the time of float32 on a CPU with bfloat16; cosines of the two are above 0.9999.
        self._model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def __call__(self, texts: Sequence[str]) -> Floats:
        """N x E, in the order of the texts."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        with self._torch.inference_mode():
            states = self._model(**tokens).last_hidden_state.double()
        mask = tokens["attention_mask"][..., None]
        means_N_E = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return means_N_E / np.linalg.norm(means_N_E, axis=1, keepdims=True)


@lru_cache(maxsize=1)
def encoder(folder: str) -> Encoder:
    """The encoder of a folder, loaded once for all dimensions."""
    return Encoder(folder)


@lru_cache(maxsize=1)
def encoder_sha256(folder: str) -> str:
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


@lru_cache(maxsize=4096)
def _embedding(folder: str, text: str) -> Floats:
    # One text at a time: padding would let an answer's neighbours change its last digits.
    (found,) = encoder(folder)([text])
    return found


def features(questions_N_E: Floats, answers_N_E: Floats) -> Floats:
    """N x (E + 1): the answer, and twice its cosine to the question. The question alone is none of
    them, since it is the same for both answers of a pair."""
    cosines_N = (questions_N_E * answers_N_E).sum(axis=1, keepdims=True)
    return np.hstack([answers_N_E, 2 * cosines_N])


@dataclass(frozen=True)
class Weights:
    """A fitted head.

    Attributes:
        weights_F: of the features.
        mean: of the logits of the answers it was fitted on.
        sd: their standard deviation.
        encoder: SHA-256 of the encoder that it was fitted with.
    """

    weights_F: Floats
    mean: float
    sd: float
    encoder: str

    def logits(self, features_N_F: Floats) -> Floats:
        """N logits: the difference of two, at one question, is the log-odds of the first one."""
        found: Floats = features_N_F @ self.weights_F
        return found

    def values(self, logits_N: Floats) -> Floats:
        """N values in (0, 1): the share of the logits it was fitted on that lie below. Of a normal
        distribution, as its logistic approximation, so that the best answers do not tie at 1."""
        return 1 / (1 + np.exp((self.mean - logits_N) / (self.sd / NORMAL)))

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Weights:
        with np.load(path) as kept:
            return cls(
                kept["weights_F"], float(kept["mean"]), float(kept["sd"]), str(kept["encoder"])
            )


class Head:
    """A fitted head as the reward of its dimension; it reads the last question and the answer."""

    class Settings(PluginSettings):
        """Settings of this kind."""

        not_in_rows = frozenset({"weights", "encoder"})  # what they hold is in the fingerprint

        weights: str
        """File that `reward_heads.py` wrote for the dimension."""
        encoder: str
        """Folder of the encoder that it was fitted with."""

    pass_threshold = 0.5
    calibration = "identity"
    asks_model = False
    step = 0.1  # of its percentiles, less is no difference: the head is far less sure than exact

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        try:
            self._head = Weights.load(Path(options.weights))
            found = encoder_sha256(options.encoder)
        except (OSError, KeyError, ValueError, BadZipFile) as e:
            raise SettingsError(
                f"rewards.{dimension}: can't read the head or its encoder ({e}): fit it with"
                " `python -m benchmarks.reward_heads fit`"
            ) from e
        if found != self._head.encoder:
            raise SettingsError(
                f"rewards.{dimension}: {options.weights} was fitted with another encoder than"
                f" {options.encoder}: fit it again, or name the folder of the first one"
            )
        self._folder = options.encoder
        self.dimension = dimension
        self.name = f"head:{dimension}"
        self.fingerprint = digest(hashlib.sha256(Path(options.weights).read_bytes()).hexdigest())

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        question = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        return [self._score(question, answer) for answer in answers]

    def _score(self, question: str, answer: str) -> Score:
        if not answer.strip():
            return Score(self.dimension, self.name, None, None, "empty")
        asked, said = (_embedding(self._folder, text)[None] for text in (question, answer))
        logit = self._head.logits(features(asked, said)).round(6)
        return Score(self.dimension, self.name, float(self._head.values(logit)[0]), float(logit[0]))
