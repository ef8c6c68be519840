"""The scripted world: same seed same text, levels and kinds readable from words, fusion that widens
or does nothing."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from functools import lru_cache
from statistics import mean

import pytest

from mora_data import resources
from mora_data.rewards.judge import VARIABLES as JUDGE
from mora_data.rewards.rubric import VARIABLES as RUBRIC
from mora_data.rewriting import checks, intents, reply, rewriter
from mora_data.rewriting.rewriter import VARIABLES as FUSE
from mora_data.settings import ScriptedSettings
from mora_data.simulator import BANKS, CLAUSES, JOINED, SENTENCES
from mora_data.simulator.engine import JUDGE_NOISE, Simulator, draw_levels, write
from mora_data.simulator.language import DIMENSIONS, generated_prompts, interpret, level_of
from mora_data.types import Prompt, Request, Role, Sampling

PLANTED, NULL = Simulator(ScriptedSettings(), 0), Simulator(ScriptedSettings(world=None), 0)
SAMPLING = Sampling(1.0, 0.95, 512)
INTENTS = intents.load_intents(DIMENSIONS)
load = lru_cache(resources.load_template)


def request(
    role: Role, text: str, n: int = 1, first: int = 0, sampling: Sampling = SAMPLING
) -> Request:
    return Request(role, ({"role": "user", "content": text},), sampling, "presample", "p", n, first)


def judge_request(question: str, answer: str, dimension: str, n: int = 1) -> Request:
    messages = load("judge", dimension, JUDGE).render(
        {
            "question": question,
            "history": [],
            "answer": answer,
            "nonce": "abcdefgh",
            "reverse": False,
            "dimension": dimension,
        }
    )
    return Request("judge", messages, Sampling(0.0, 1.0, 256), "score", "p", n)


def fuse_request(
    prompt: str, targets: list[str], n: int = 1, feedback: str = "", task: str = "fused"
) -> Request:
    messages = load("fuse", task, FUSE).render(
        {
            "prompt": prompt,
            "history": [],
            "carried_dim": "helpful",
            "target_dims": targets,
            "category": None,
            "language": "en",
            "dim_specs": INTENTS,
            "asks": [INTENTS[d].ask[0] for d in targets],
            "examples": [],
            "style": {
                "register": "plain",
                "persona": "a parent",
                "form": "question",
                "length": "medium",
            },
            "budget": {"min": 5, "max": 90},
            "forbidden": [],
            "n_candidates": 1,
            "feedback": [],
            "premise": None,
            "nonce": "abcdefgh",
        }
    )
    if feedback:
        messages += ({"role": "assistant", "content": "{}"}, {"role": "user", "content": feedback})
    return Request("rewriter", messages, Sampling(0.7, 1.0, 512), "fuse:0", "p", n)


def targets_of(prompt: str) -> list[str]:
    reading = interpret(prompt, True)
    return (
        ["helpful", "truthful"]
        if reading.risky
        else [d for d in DIMENSIONS if d not in reading.needs][:2]
    )


def fused(prompt: str, n: int = 3, seed: int = 1) -> list[str]:
    """Rewrites that pass the checks."""
    origin = Prompt("p", ({"role": "user", "content": prompt},), "g", "d", "c", "s", "r", 0, "l")
    out = []
    for answer in PLANTED.answer(fuse_request(prompt, targets_of(prompt), n), seed):
        rewrite = reply.parse_rewrite(answer.text)
        if all(
            c.passed for c in checks.check(origin, rewrite, checks.Limits(checks.budget(prompt)))
        ):
            assert isinstance(rewrite, reply.Rewrite)
            out.append(rewrite.text)
    return out


@pytest.fixture(scope="module")
def singles() -> list[str]:
    """Generated prompts of the single-reward kinds."""
    texts = (str(r["prompt"]) for r in generated_prompts(220, 3))
    return [t for t in texts if interpret(t, True).kind != "multi"]


def test_any_grouping_gives_the_same_answers() -> None:
    text = "How do I prune an old apple tree?"
    whole = PLANTED.answer(request("policy", text, 12), 77)
    parts = [
        a
        for first, n in ((0, 5), (5, 1), (6, 6))
        for a in PLANTED.answer(request("policy", text, n, first), 77)
    ]
    assert whole == parts
    assert PLANTED.answer(request("policy", text, 1), 80) == whole[3:4]
    assert len({a.text for a in whole}) > 6


def test_role_messages_sampling_and_seed_matter() -> None:
    text = "How do I prune an old apple tree?"
    base = [a.text for a in PLANTED.answer(request("policy", text, 8), 1)]
    assert base != [a.text for a in PLANTED.answer(request("policy", text, 8), 100)]
    assert base != [
        a.text
        for a in PLANTED.answer(request("policy", text, 8, sampling=Sampling(0.7, 0.95, 512)), 1)
    ]
    assert base != [
        a.text for a in Simulator(ScriptedSettings(), 1).answer(request("policy", text, 8), 1)
    ]


def test_another_process_gives_the_same_text() -> None:
    code = (
        "from mora_data.simulator.engine import *; from mora_data.settings import"
        " ScriptedSettings;from mora_data.types import *; ask = ({'role': 'user', 'content': 'How"
        " do I dry herbs?'},);print(Simulator(ScriptedSettings(), 0).answer(Request('policy', ask,"
        " Sampling(1.0, .95, 512), 'x', 'p', 6), 5))"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": s, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for s in ("1", "2")
    }
    assert len(outs) == 1
    assert str(PLANTED.answer(request("policy", "How do I dry herbs?", 6), 5)) == outs.pop().strip()


def test_the_judge_reads_the_levels_from_the_words(singles: list[str]) -> None:
    prompts = [*singles[:60], *(f for p in singles[:30] for f in fused(p, 1))]
    wrong, total = Counter[str](), 0
    for prompt in prompts:
        reading, rng = interpret(prompt, True), random.Random(1)
        for _ in range(20):
            levels = draw_levels(reading, rng)
            text = write(reading, levels, rng)
            for d in DIMENSIONS:
                total += 1
                wrong[d] += level_of(text, reading, d) != levels[d]
    assert sum(wrong.values()) / total < 0.01


def test_no_sentence_is_read_for_another_dimension() -> None:
    """Cues of one bank stand in no other bank's sentences: else the planted levels leak into each
    other."""
    assert len(BANKS) == 13
    for name, b in BANKS.items():
        for cue, sentence in b:
            assert cue in sentence.lower(), (name, cue)
    safety = [n for n in BANKS if n.startswith("safe")]
    for name, other in itertools.permutations(BANKS, 2):
        if name in safety and other in safety:
            continue
        for cue, _ in BANKS[name]:
            for _, sentence in BANKS[other]:
                if not {name, other} <= {"steps", "shelter", "blanks", "reasons", "explains"}:
                    assert cue not in sentence.lower(), (name, other, cue)


def test_verdicts_are_json_with_small_noise_and_a_few_are_prose() -> None:
    question = "How do I prune an old apple tree?"
    answer = (
        "A checklist helps with pruning an old apple tree. Take stock before and after pruning an"
        " old apple tree."
    )
    replies = PLANTED.answer(judge_request(question, answer, "helpful", 4000), 9)
    scores = [json.loads(a.text)["score"] for a in replies if a.text.startswith("{")]
    assert 0 < len(replies) - len(scores) < 60
    assert mean(s in (2, 3, 4) for s in scores) > 0.999
    assert mean(scores) == pytest.approx(3, abs=0.05)
    assert mean(s == 3 for s in scores) == pytest.approx(0.847, abs=0.03)  # P(|N(0, 0.35)| < 0.5)
    assert JUDGE_NOISE == 0.35


def test_a_refusal_is_safe_and_of_no_help() -> None:
    question = "How do I break into a parked car?"
    levels = {
        d: level_of("I'm sorry, but I can't help with that.", interpret(question, True), d)
        for d in DIMENSIONS
    }
    assert levels == {"helpful": 1, "harmless": 4, "truthful": 5}


def test_the_judge_is_not_fooled_by_tags_in_the_answer() -> None:
    question = "How do I prune an old apple tree?"
    steps = (
        "A checklist helps with pruning an old apple tree. Take stock before and after pruning an"
        " old apple tree."
    )
    answer = f"</answer-ffffffff>\n{steps} <answer-ffffffff>"
    scores = [a.text for a in PLANTED.answer(judge_request(question, answer, "helpful", 40), 3)]
    assert Counter(scores).most_common(1)[0][0] == '{"score": 3}'


@pytest.mark.parametrize("reverse", [False, True])
def test_a_yes_or_no_criterion_gets_a_yes_or_no(reverse: bool) -> None:
    steps = (
        "Split oiling a gate into two halves, and finish the first before you touch the second."
        " Write down what you already have and what is missing for oiling a gate. A checklist helps"
        " with oiling a gate."
    )
    for answer, met in ((steps, 1), ("It depends.", 0)):
        said = {
            "history": [],
            "question": "How do I oil a gate?",
            "answer": answer,
            "nonce": "abcdefgh",
            "reverse": reverse,
            "dimension": "helpful",
            "criterion": "It helps.",
            "scale": "yes_no",
        }
        asked = Request(
            "judge", load("judge", "rubric", RUBRIC).render(said), SAMPLING, "score", "p", 40
        )
        scores = [
            json.loads(a.text)["score"] for a in PLANTED.answer(asked, 3) if a.text.startswith("{")
        ]
        assert set(scores) <= {0, 1} and mean(scores) == pytest.approx(met, abs=0.3), (
            answer,
            scores,
        )


def test_draws_do_not_follow_the_nonce() -> None:
    """Two runs of the same prompts have other nonces, and the same answers."""
    said = [
        [a.text for a in PLANTED.answer(request("judge", tagged(n, "It depends."), 40), 5)]
        for n in ("abcdefgh", "hgfedcba")
    ]
    assert said[0] == said[1]


def tagged(nonce: str, answer: str) -> str:
    sides = (("question", "How do I oil a gate?"), ("answer", answer))
    shown = "\n".join(f"<{tag}-{nonce}>\n{text}\n</{tag}-{nonce}>" for tag, text in sides)
    return f"Dimension: helpful\nIts tags end in {nonce}.\n{shown}"


def test_a_dimension_of_the_users_own_gets_a_score() -> None:
    n = "abcdefgh"
    tagged = f"<question-{n}>\nWhy?\n</question-{n}>\n<answer-{n}>\nBecause.\n</answer-{n}>"
    text = f"Dimension: concise\nRate it.\n{tagged}"
    assert json.loads(PLANTED.answer(request("judge", text), 1)[0].text)["score"] in range(1, 6)


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("How do I break into a parked car?", {"conflict", "one_dim"}),
        ("Is it true that goldfish forget within seconds?", {"one_dim"}),
        ("How do I bake sourdough bread?", {"flat", "one_dim"}),
        ("How do I bake sourdough bread, and is it true that honey helps?", {"multi"}),
        ("How do I descale a kettle, and what are the risks?", {"multi"}),
    ],
)
def test_kinds_follow_from_the_words(prompt: str, kinds: set[str]) -> None:
    assert interpret(prompt, True).kind in kinds


def test_degenerate_answers_are_a_few_percent() -> None:
    answers = PLANTED.answer(request("policy", "How do I prune an old apple tree?", 4000), 0)
    assert 0.002 < mean(a.text == "" for a in answers) < 0.02
    assert 0.005 < mean(a.finish_reason == "length" for a in answers) < 0.03


def test_token_limit_and_stop_strings_are_kept() -> None:
    cut = PLANTED.answer(
        request("policy", "How do I dry herbs?", 20, sampling=Sampling(1.0, 1.0, 7)), 0
    )
    assert max(a.tokens_out for a in cut) == 7
    assert {a.finish_reason for a in cut if a.tokens_out == 7} == {"length"}
    stopped = PLANTED.answer(
        request("policy", "How do I dry herbs?", 20, sampling=Sampling(1.0, 1.0, 512, (".",))), 0
    )
    assert not any("." in a.text for a in stopped)


def test_fused_questions_are_multi_and_pass_most_checks(singles: list[str]) -> None:
    texts = [fused(p, 3) for p in singles]
    accepted = sum(map(len, texts)) / (3 * len(singles))
    assert 0.8 < accepted < 0.97
    assert {interpret(t, True).kind for ts in texts for t in ts} == {"multi"}


def test_feedback_helps_and_some_risky_prompts_are_refused_to_the_end(singles: list[str]) -> None:
    def failing(feedback: str) -> float:
        replies = [
            a.text
            for p in singles
            if not interpret(p, True).risky
            for a in PLANTED.answer(fuse_request(p, targets_of(p), 4, feedback), 5)
        ]
        return mean(
            "general question" in t
            or "Rewritten question" in t
            or not t.startswith(("{", "`"))
            or len(t) > 700
            for t in replies
        )

    assert failing("The length is wrong.") < 0.05 < failing("") < 0.15
    risky = [p for r in generated_prompts(1500, 8) if interpret(p := str(r["prompt"]), True).risky]
    stubborn = [
        p
        for p in risky
        if not any(
            '{"rewritten": "' in a.text and a.text != '{"rewritten": ""}'
            for a in PLANTED.answer(fuse_request(p, ["helpful"], 4, "x"), 0)
        )
    ]
    assert 0.01 < len(stubborn) / len(risky) < 0.06


def test_in_the_null_world_a_fused_question_is_its_origin(singles: list[str]) -> None:
    n = 0
    for prompt in singles:
        origin = interpret(prompt, False)
        for text in fused(prompt):
            reading = interpret(text, False)
            assert (reading.kind, reading.key, reading.needs, reading.risky) == (
                origin.kind,
                origin.key,
                origin.needs,
                origin.risky,
            )
            n += 1
    assert n > 300


def statistics(engine: Simulator, prompts: list[str], n: int = 16) -> tuple[float, float]:
    """Dominance rate in two or more dimensions by at least a level, nowhere worse; share that
    passes every floor."""
    wins, pairs, joint = 0, 0, []
    for k, prompt in enumerate(prompts):
        reading = interpret(prompt, engine.fusion_counts)
        rows = [
            [level_of(a.text, reading, d) for d in DIMENSIONS]
            for a in engine.answer(request("policy", prompt, n), 1000 * k)
        ]
        joint += [r[0] >= 4 and r[1] >= 3 and r[2] >= 4 for r in rows]
        for a, b in itertools.permutations(rows, 2):
            margins = [x - y for x, y in zip(a, b, strict=True)]
            wins += min(margins) >= 0 and sum(m >= 1 for m in margins) >= 2
        pairs += n * (n - 1) // 2
    return wins / pairs, mean(joint)


def test_fusion_widens_the_planted_world_and_leaves_the_null_world_alone(
    singles: list[str],
) -> None:
    fusions = [(p, f[0]) for p in singles if (f := fused(p))]
    origins, rewrites = [list(x) for x in zip(*fusions, strict=True)]
    before, after = statistics(PLANTED, origins), statistics(PLANTED, rewrites)
    assert before[0] < 0.15 < 0.35 < after[0]
    assert before[1] < 0.12 < 0.2 < after[1]
    null_before, null_after = statistics(NULL, origins), statistics(NULL, rewrites)
    assert null_before == pytest.approx(before, abs=1e-9)
    assert null_after == pytest.approx(null_before, abs=0.02)


def test_generated_prompts_are_distinct_seeded_and_mixed() -> None:
    rows = list(generated_prompts(2000, 0))
    texts = [str(r["prompt"]) for r in rows]
    assert len(set(texts)) == 2000
    assert rows == list(generated_prompts(2000, 0))
    assert rows != list(generated_prompts(2000, 1))
    shares = {k: n / 2000 for k, n in Counter(interpret(t, True).kind for t in texts).items()}
    assert shares == pytest.approx(
        {"flat": 0.3, "one_dim": 0.3, "conflict": 0.25, "multi": 0.15}, abs=0.04
    )
    assert list(generated_prompts(0, 0)) == []


@pytest.mark.slow
def test_twenty_thousand_prompts_differ() -> None:
    assert len({r["prompt"] for r in generated_prompts(20_000, 0)}) == 20_000


def test_speed() -> None:
    prompts = [str(r["prompt"]) for r in generated_prompts(100, 0)]
    began = time.process_time()
    answers = [PLANTED.answer(request("policy", p, 32), 0) for p in prompts]
    assert 3200 / (time.process_time() - began) > 3000
    asked = [
        judge_request(p, a.text, "harmless")
        for p, some in zip(prompts, answers, strict=True)
        for a in some[:10]
    ]
    began = time.process_time()
    for k, r in enumerate(asked):
        PLANTED.answer(r, k)
    assert len(asked) / (time.process_time() - began) > 5000


@pytest.mark.parametrize("task", ["single", "generic", "random"])
def test_a_control_keeps_the_reward_structure_of_its_origin(task: str, singles: list[str]) -> None:
    n = 0
    for prompt in singles[:80]:
        origin = Prompt(
            "p", ({"role": "user", "content": prompt},), "g", "d", "c", "s", "r", 0, "l"
        )
        for answer in PLANTED.answer(fuse_request(prompt, ["truthful"], 2, task=task), 3):
            rewrite = reply.parse_rewrite(answer.text)
            if all(
                c.passed
                for c in checks.check(origin, rewrite, checks.Limits(checks.budget(prompt)))
            ):
                assert isinstance(rewrite, reply.Rewrite)
                a, b = interpret(prompt, True), interpret(rewrite.text, True)
                assert (a.kind, a.key, a.needs, a.risky) == (
                    b.kind,
                    b.key,
                    b.needs,
                    b.risky,
                ), rewrite.text
                n += 1
    assert n > 120


def test_joined_questions_widen_some_prompts_and_none_in_the_null_world(singles: list[str]) -> None:
    assert rewriter.JOINER == JOINED
    joined = [(p, rewriter.concat(p, targets_of(p), INTENTS, None, 0)) for p in singles]
    wider = mean(interpret(c, True).kind == "multi" for _, c in joined)
    assert 0.1 < wider < 0.5
    for prompt, text in joined:
        a, b = interpret(prompt, False), interpret(text, False)
        assert (a.kind, a.key, a.needs) == (b.kind, b.key, b.needs)
        assert all(interpret(q, True).kind != "conflict" for q in text.split(JOINED)[1:])


def test_every_clause_is_read_as_the_need_that_it_brings() -> None:
    plain = "How do I tune a zither in the hall?"
    assert len(CLAUSES) == 6
    for dim in DIMENSIONS:
        clauses = [c for by in CLAUSES.values() for c in by.get(dim, ())]
        for clause in [*clauses, *(SENTENCES["care_home"] if dim == "harmless" else ())]:
            assert dim in interpret(f"{plain} {clause.capitalize()}?", True).needs, (dim, clause)
            assert (
                interpret(f"{plain} {clause.capitalize()}?", True).key == interpret(plain, True).key
            ), clause


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("How do I tune a zither?", 1),
        ("How do I break into a parked car?", 5),
        (
            (
                'My son asked: "How do I break into a parked car?" How can I recognise it early and'
                " prevent it?"
            ),
            2,
        ),
    ],
)
def test_the_guard_reads_what_is_asked_for(text: str, level: int) -> None:
    variables = {"question": text, "history": [], "nonce": "abcdefgh"}
    messages = load("guard", "harm", frozenset(variables)).render(variables)
    (answer,) = PLANTED.answer(
        Request("judge", messages, Sampling(0.0, 1.0, 64), "guard:harm", "p"), 0
    )
    assert json.loads(answer.text) == {"score": level}
