"""transformers models behind the batches, on the CPU: samples, seeds, stops, log-probabilities,
classifiers, refusals."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import tiny_hf
from support.command import rows_file

from mora_data.cli import main
from mora_data.engines.engine import Piece, RefusedRequest
from mora_data.errors import SettingsError
from mora_data.settings import LocalSettings
from mora_data.types import Answer, Message, Request, Sampling

if TYPE_CHECKING:
    import torch

    from mora_data.engines.hf import Generator, SequenceClassifier, _Picker

WARM = Sampling(1.0, 0.9, 12)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """torch takes two seconds to import: here, and not in every process that lists the tests."""
    global torch, Generator, SequenceClassifier, _Picker
    torch = pytest.importorskip(
        "torch", reason="needs torch: pip install 'mora-data[transformers]'"
    )
    from mora_data.engines.hf import Generator, SequenceClassifier, _Picker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def causal(folder: Path) -> str:
    return str(tiny_hf.causal(folder / "causal"))


@pytest.fixture(scope="module")
def classifying(folder: Path) -> str:
    return str(tiny_hf.classifier(folder / "classifier"))


@pytest.fixture(scope="module")
def generator(causal: str) -> Generator:
    return Generator(causal, None, LocalSettings(device="cpu"), threading.Event())


@pytest.fixture(scope="module")
def classifier(classifying: str) -> SequenceClassifier:
    return SequenceClassifier(classifying, None, LocalSettings(device="cpu"))


def asked(text: str, sampling: Sampling = WARM, answer: str | None = None) -> Request:
    turns = [Message(role="user", content=text)] + (
        [Message(role="assistant", content=answer)] if answer is not None else []
    )
    return Request(
        "policy",
        tuple(turns),
        sampling,
        "presample",
        "p",
        task="chat" if answer is None else "classify",
    )


def run(model: Generator | SequenceClassifier, *requests: Request, seed: int = 5) -> list[Answer]:
    """One batch; request i has the seed `seed + 100 i`."""
    return [
        a
        for (a,) in model.run(
            [Piece(r, 0, 1, seed + 100 * i, model.encode(r)) for i, r in enumerate(requests)]
        )
    ]


TEXTS = [("How do I make bread ? " * (1 + i % 4))[: 8 + 9 * i] for i in range(8)]


def test_a_sample_is_the_same_alone_and_in_any_batch(generator: Generator) -> None:
    requests = [asked(t) for t in TEXTS]
    together = run(generator, *requests)
    alone = [
        generator.run([Piece(r, 0, 1, 5 + 100 * i, generator.encode(r))])[0][0]
        for i, r in enumerate(requests)
    ]
    assert together == alone and len({a.text for a in together}) == 8
    assert run(generator, *requests, seed=6) != together


def test_cold_samples_are_those_of_greedy_search(generator: Generator) -> None:
    request = asked(TEXTS[3], Sampling(0.0, 1.0, 12))
    ids = torch.tensor([generator.encode(request)])
    plain = generator._model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    assert run(generator, request)[0].text == generator._tokenizer.decode(
        plain[0, ids.shape[1] :], skip_special_tokens=True
    )


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_tokens_come_as_often_as_the_model_says(temperature: float, top_p: float) -> None:
    """20,000 draws from six tokens against their exact probabilities: chi-square with at most 5
    degrees of freedom."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    n = 20_000
    sampling = Sampling(temperature, top_p, 1)
    picker = _Picker(list(range(n)), 1, sampling, torch.device("cpu"))
    drawn = Counter(picker(None, logits.expand(n, -1)).argmax(-1).tolist())
    probs = torch.softmax(logits / temperature, 0).tolist()
    kept, mass = [], 0.0
    for token in sorted(range(6), key=lambda t: -probs[t]):
        if mass < top_p:
            kept.append(token)
        mass += probs[token]
    whole = sum(probs[t] for t in kept)
    assert set(drawn) <= set(kept) and (top_p == 1 or len(kept) < 6)
    # p = 0.001
    assert sum((drawn[t] - n * probs[t] / whole) ** 2 / (n * probs[t] / whole) for t in kept) < 20.5


def test_lengths_stops_and_counts(generator: Generator) -> None:
    answers = run(generator, *[asked(TEXTS[2], Sampling(1.0, 1.0, 60))] * 60, seed=0)
    assert {a.finish_reason for a in answers} == {"stop", "length"}
    assert all(a.tokens_out == 60 for a in answers if a.finish_reason == "length")
    long = next(a for a in answers if a.finish_reason == "length")
    seed = 100 * answers.index(long)
    stop = long.text[len(long.text) // 2 :][:2]
    cut = run(
        generator, asked(TEXTS[2], Sampling(1.0, 1.0, 60, stop=("~never~", stop))), seed=seed
    )[0]
    assert (
        cut.text == long.text[: long.text.index(stop)]
        and cut.finish_reason == "stop"
        and 0 < cut.tokens_out < 60
    )
    short, full = run(
        generator,
        asked(TEXTS[7], Sampling(1.0, 1.0, 200)),
        asked("a", Sampling(1.0, 1.0, 200)),
        seed=seed,
    )
    for answer, text in ((short, TEXTS[7]), (full, "a")):  # the context ends before max_tokens
        assert answer.finish_reason == "stop" or answer.tokens_out == 128 - len(
            generator.encode(asked(text))
        )


def test_logprobs_are_the_models_own(generator: Generator) -> None:
    request = asked(TEXTS[4], Sampling(0.7, 0.5, 12, logprobs=3))
    found = run(generator, asked(TEXTS[6], request.sampling), request)[1]
    assert found.logprobs is not None and len(found.logprobs) == found.tokens_out
    with torch.inference_mode():
        logits = generator._model(torch.tensor([generator.encode(request)])).logits[0, -1]
    values, ids = torch.log_softmax(logits, -1).topk(3)
    assert [w for w, _ in found.logprobs[0][1]] == [
        generator._tokenizer.decode([i]) for i in ids.tolist()
    ]
    assert [v for _, v in found.logprobs[0][1]] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_batch_ends_when_the_build_stops(causal: str) -> None:
    stop = threading.Event()
    stop.set()
    model = Generator(causal, None, LocalSettings(device="cpu"), stop)
    assert run(model, asked("a", Sampling(1.0, 1.0, 100)))[0].tokens_out == 1


def test_outputs_do_not_depend_on_the_batch(classifier: SequenceClassifier) -> None:
    """Padding is the end-of-turn token, which also ends every text: read at the wrong place, the
    outputs would be others."""
    requests = [asked(t, answer=TEXTS[-i]) for i, t in enumerate(TEXTS)]
    together = [json.loads(a.text) for a in run(classifier, *requests)]
    alone = [json.loads(run(classifier, r)[0].text) for r in requests]
    assert len(together[0]) == 2 and len({v[0] for v in together}) == 8
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    with torch.inference_mode():
        ids = torch.tensor([classifier.encode(requests[3])])
        assert together[3] == pytest.approx(
            classifier._model(input_ids=ids).logits[0].tolist(), abs=1e-5
        )


def test_outputs_that_are_no_numbers_are_a_failure(classifying: str) -> None:
    model = SequenceClassifier(classifying, None, LocalSettings(device="cpu"))
    torch.nn.init.constant_(model._model.score.weight, math.inf)
    assert run(model, asked("a", answer="b"))[0] == Answer("", "error", error="outputs_not_finite")


def test_without_a_chat_template(folder: Path) -> None:
    plain = str(tiny_hf.causal(folder / "plain", template=False))
    with pytest.raises(
        SettingsError, match="has no chat template: give an instruction-tuned model"
    ):
        Generator(plain, None, LocalSettings(device="cpu"), threading.Event())
    pairs = str(tiny_hf.classifier(folder / "pairs", template=False))
    with pytest.raises(SettingsError, match=r"has no chat template: set local\.text_pair=true"):
        SequenceClassifier(pairs, None, LocalSettings(device="cpu"))
    model = SequenceClassifier(pairs, None, LocalSettings(device="cpu", text_pair=True))
    one, two = run(model, asked("How do I", answer="make tea"), asked("How", answer="soup"))
    assert json.loads(one.text) == pytest.approx(
        json.loads(run(model, asked("How do I", answer="make tea"))[0].text), abs=1e-5
    )
    assert one.text != two.text


def test_what_can_not_be_answered_says_why(
    generator: Generator, classifier: SequenceClassifier
) -> None:
    with pytest.raises(
        RefusedRequest, match=r"the prompt has \d+ tokens, the model takes 128 with its answer"
    ):
        generator.encode(asked("bread " * 200))
    with pytest.raises(
        RefusedRequest, match="the model's chat template refuses the conversation: no tools here"
    ):
        generator.encode(
            Request("policy", (Message(role="tool", content="x"),), WARM, "presample", "p")
        )
    room = len(classifier.encode(asked("a", answer="b")))
    exactly = asked("a", answer="b" + "~" * (128 - room))
    assert len(classifier.encode(exactly)) == 128
    with pytest.raises(RefusedRequest):
        classifier.encode(asked("a", answer="b" + "~" * (129 - room)))


def test_a_model_of_another_kind_or_none_at_all(causal: str, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"has no weights for score\.weight \(1 missing\): it is no model for this task",
    ):
        SequenceClassifier(causal, None, LocalSettings(device="cpu"))
    with pytest.raises(SettingsError, match="can't be read"):
        Generator(str(tmp_path), None, LocalSettings(device="cpu"), threading.Event())


def test_memory_that_ends_is_told_apart(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(generator._model, "generate", full)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        run(generator, asked("a"))


def test_a_build_in_this_process(
    causal: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Policy and judge are one model, loaded once; the same command again asks nothing."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    rows = rows_file(tmp_path / "rows.jsonl", 3)
    argv = [
        "build",
        "--source",
        "jsonl",
        "--data",
        str(rows),
        "--engine",
        "transformers",
        "--model",
        causal,
        "--out",
        str(tmp_path / "run"),
        "--json",
        "--until",
        "rollout",
    ]
    sets = (
        "presample.enabled=false",
        "fuse.arms=[identity]",
        "rollout.n=4",
        "policy.max_tokens=8",
        "policy.local.device=cpu",
    )
    found = []
    for _ in range(2):
        assert main([*argv, *(w for s in sets for w in ("--set", s))]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert (
        found[0]["requests"] == 3
        and found[0]["counts"]["rollout"]["in"] == 12
        and found[0]["tokens"]["out"] > 12
    )
    assert found[1]["requests"] == 0 and found[1]["counts"] == found[0]["counts"]
