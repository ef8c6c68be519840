"""Personal data with a fixed form in the published texts: how many texts hold an e-mail address, a
phone number, ...

    screen(folder)   ->  {"found": {"EMAIL_ADDRESS": {"prompts": 3, "source_prompts": 3, "answers":
    1}, ...}, ...}

Counts only: what was matched is never kept. Presidio's pattern recognizers decide (checksums and
number plans included); a regular expression over whole Arrow columns first leaves out the texts
that can't match, so they see few. They run one by one, without a language model, and nothing goes
over the network. Names and postal addresses have no form and are not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import PublishError

Holds = Callable[[str], bool]
# weaker patterns, as any nine digits for a social security number, need context that nothing here
# reads
LEAST_SCORE = 0.3
_SIDES = {
    "prompts": ("prompt",),
    "source_prompts": ("source_prompt",),
    "answers": ("chosen", "rejected", "completion", "completions", "response"),
}


class Kind(NamedTuple):
    """An entity type: its recognizer in Presidio, and what every text that holds one matches."""

    recognizer: str
    needs: str


KINDS = {
    "EMAIL_ADDRESS": Kind("EmailRecognizer", "@"),
    "PHONE_NUMBER": Kind("PhoneRecognizer", r"\pN(?:[^\pN]{0,6}\pN){5}"),
    "IP_ADDRESS": Kind("IpRecognizer", r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:"),
    "CREDIT_CARD": Kind("CreditCardRecognizer", r"\pN(?:[ -]?\pN){12}"),
    "IBAN_CODE": Kind("IbanRecognizer", r"[A-Za-z]{2}[0-9]{2}"),
    "US_SSN": Kind("UsSsnRecognizer", r"\pN(?:[- .]?\pN){8}"),
}


def recognizers() -> dict[str, Holds]:
    """For each entity type, whether a text holds one.

    Raises:
        PublishError: Presidio is not installed.
    """
    try:
        found = import_module("presidio_analyzer.predefined_recognizers")
        offline = import_module("tldextract").TLDExtract(cache_dir=None, suffix_list_urls=())
    except ImportError as e:
        raise PublishError(
            "publish.pii needs presidio-analyzer, which is not installed: pip install"
            " 'mora-data[pii]'"
        ) from e
    made = {kind: getattr(found, KINDS[kind].recognizer)() for kind in KINDS}
    # its own check of the domain would fetch the list of public suffixes; the list that tldextract
    # ships is enough
    made["EMAIL_ADDRESS"].validate_result = lambda address: bool(offline(address).fqdn)
    return {kind: _holds(recognizer, kind) for kind, recognizer in made.items()}


def screen(folder: Path, looking: Mapping[str, Holds] | None = None) -> dict[str, Any]:
    """How many texts hold each entity type; every row of `scored` is read, of all other configs
    where there is no `scored`.

    Raises:
        PublishError: Presidio is not installed.
    """
    holds = recognizers() if looking is None else looking
    names = sorted({p.parent.name for p in folder.glob("*/*.parquet")})
    names = ["scored"] if "scored" in names else names
    texts = dict.fromkeys(_SIDES, 0)
    found = {kind: dict.fromkeys(_SIDES, 0) for kind in holds}
    for name in names:
        for side, column in _columns(folder / name):
            texts[side] += len(column)
            for kind, hold in holds.items():
                likely = column.filter(pc.match_substring_regex(column, KINDS[kind].needs))
                found[kind][side] += sum(hold(text) for text in likely.to_pylist())
    by = f"presidio-analyzer {version('presidio-analyzer')}" if looking is None else "given"
    return {"by": by, "configs": names, "texts": texts, "found": found}


def _holds(recognizer: Any, kind: str) -> Holds:
    return lambda text: any(
        hit.score >= LEAST_SCORE for hit in recognizer.analyze(text, [kind], None)
    )


def _columns(config: Path) -> Iterator[tuple[str, pa.Array]]:
    """(side, its texts) of one config, a row group at a time; a conversation counts as one text."""
    for path in sorted(config.glob("*.parquet")):
        file = pq.ParquetFile(path)
        have = [
            (side, c)
            for side, columns in _SIDES.items()
            for c in columns
            if c in file.schema_arrow.names
        ]
        for k in range(file.num_row_groups):
            rows = file.read_row_group(k, columns=[c for _, c in have])
            for side, column in have:
                yield side, _texts(rows[column].combine_chunks())


def _texts(values: Any) -> pa.Array:
    """Strings as they are, a list of strings one by one, each list of messages as its contents in
    one text."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not pa.types.is_list(values.type):
        return values
    if not pa.types.is_struct(values.type.value_type):
        return values.flatten()
    contents = values.flatten().field("content")
    offsets = pc.subtract(values.offsets, values.offsets[0])
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents), "\n")
