"""The built-in simulator: policy, judge and rewriter of a world whose reward structure is known.

    engine     the engine `scripted`; the policy and the judge
    language   how it reads prompts and answers and writes prompts and rewrites

Everything that it writes, and the words that it reads by, are in phrases.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Bank = Sequence[tuple[str, str]]  # (cue that the judge counts, sentence that the policy writes)

_FILE = Path(__file__).with_name("phrases.yaml")
# the loader in C takes 5 ms, the other one 100
_DATA: Any = yaml.load(_FILE.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506

CLAUSES: Mapping[str, Mapping[str, Sequence[str]]] = _DATA["clauses"]
SENTENCES: Mapping[str, Sequence[str]] = _DATA["sentences"]
BANKS: Mapping[str, Bank] = {name: tuple(bank.items()) for name, bank in _DATA["banks"].items()}
CUES: Mapping[str, Sequence[str]] = _DATA["cues"]
WORDS: Mapping[str, frozenset[str]] = {k: frozenset(v.split()) for k, v in _DATA["words"].items()}
TURNED: Mapping[str, Mapping[str, str]] = _DATA["turned"]
PATTERNS: Mapping[str, str] = {k: "|".join(v) for k, v in _DATA["patterns"].items()}
PROMPTS: Mapping[str, Any] = _DATA["prompts"]
JOINED = SENTENCES["joined"][0]
