"""A row of each layout: what docs/data.md shows, and the first thing that is tested of it."""

from __future__ import annotations

from typing import Any

_TURN = {"role": "user", "content": "Why is the sky blue?"}
_SAID = {"role": "assistant", "content": "Air scatters blue light."}
_OTHER = {"role": "assistant", "content": "It is not."}
_Q, _A, _B = (t["content"] for t in (_TURN, _SAID, _OTHER))
_HH_ROW = {k: f"\n\nHuman: {_Q}\n\nAssistant: {a}" for k, a in (("chosen", _A), ("rejected", _B))}
_SAFE = {
    f"{name}{i}{end}": value
    for i in (0, 1)
    for name, end, value in (("response_", "", (_A, _B)[i]), ("is_response_", "_safe", i == 0))
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "hh": _HH_ROW,
    "red-team": {"transcript": f"\n\nHuman: {_Q}\n\nAssistant: {_A}", "rating": 1.0},
    "pku-saferlhf": {"prompt": _Q, **_SAFE, "better_response_id": 0, "safer_response_id": 0},
    "ultrafeedback": {
        "source": "flan",
        "instruction": _Q,
        "completions": [{"response": _A, "annotations": {"helpfulness": {"Rating": "4"}}}],
    },
    "helpsteer": {"prompt": _Q, "response": _A, "helpfulness": 4, "correctness": 3},
    "self-instruct": {
        "instruction": "Name its capital.",
        "instances": [{"input": "France", "output": "Paris."}],
    },
    "graded": {"orig_instruction": _Q, "orig_response": _A, "orig_score": "4"},
    "preference-collection": {
        "orig_instruction": _Q,
        "orig_response_A": _A,
        "orig_response_B": _B,
        "orig_preference": "A",
    },
    "verdict": {"question": _Q, "response_A": _A, "response_B": _B, "label": "A>B"},
    "oasst-tree": {
        "prompt": {"text": _Q, "replies": [{"text": _A, "rank": 0}, {"text": _B, "rank": 1}]}
    },
    "oasst-messages": {"message_id": "1", "parent_id": None, "role": "prompter", "text": _Q},
    "openai-preference": {
        "input": {"messages": [_TURN]},
        "preferred_output": [_SAID],
        "non_preferred_output": [_OTHER],
    },
    "webgpt": {
        "question": {"full_text": _Q},
        "answer_0": _A,
        "answer_1": _B,
        "score_0": 1.0,
        "score_1": -1.0,
    },
    "summaries": {
        "info": {"post": "A long post."},
        "summaries": [{"text": _A}, {"text": _B}],
        "choice": 1,
    },
    "kaggle-arena": {
        "prompt": f'["{_Q}"]',
        "response_a": f'["{_A}"]',
        "response_b": f'["{_B}"]',
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    "arena": {
        "conversation_a": [_TURN, _SAID],
        "conversation_b": [_TURN, _OTHER],
        "winner": "model_a",
    },
    "answer-list": {
        "prompt": _Q,
        "answers": [{"text": _A, "ratings": {"x": 5}}, {"text": _B, "ratings": {"x": 1}}],
    },
    "preference": {
        "prompt": _Q,
        "chosen": _A,
        "rejected": _B,
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "two-answers": {"context": [_TURN], "response1": _A, "response2": _B, "overall_preference": -2},
    "scored-list": {"instruction": _Q, "generations": [_A, _B], "ratings": [5.0, 1.0]},
    "ranked": {"instruction": _Q, "input": "", "output": [_A, _B]},
    "kto": {"prompt": _Q, "completion": _A, "label": True},
    "safety-labels": {
        "prompt": _Q,
        "response": _A,
        "is_safe": True,
        "category": {"violence": False},
    },
    "sharegpt": {"conversations": [{"from": "human", "value": _Q}, {"from": "gpt", "value": _A}]},
    "exchanges": {"conversation": [{"input": _Q, "output": _A}]},
    "messages": {"messages": [_TURN, _SAID]},
    "user-turns": {"question_id": 1, "turns": [_Q, "Since when?"]},
    "by-turns": {"id": "1", "data": [_Q, _A]},
    "alpaca": {"instruction": "Name its capital.", "input": "France", "output": "Paris."},
    "transcript": {
        "text": f"<|im_start|>user\n{_Q}<|im_end|>\n<|im_start|>assistant\n{_A}<|im_end|>\n"
    },
    "prompt": {"prompt": _Q, "category": "science"},
}
