"""Sizes of the experiment, fixed before it is run: `cpu` for two cores, `gpu` for one large GPU,
`toy` for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plugins import topics
from .world import Topic


@dataclass(frozen=True, slots=True)
class Size:
    """Of the base policy and of its training."""

    layers: int
    width: int
    heads: int
    steps: int
    batch: int
    learning_rate: float
    more: int  # steps of each further round, where it is not competent yet


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    name: str
    model: Size
    n_topics: tuple[int, int, int]  # train, pool, test
    n_dev: int  # train topics that were never seen fused, on which the learning rate is chosen
    wordings: int  # of each plain question of the pool
    answers: int  # per prompt, before fusion and per arm
    budget: int  # prompts of each base that go on to fusion
    test_answers: int  # per test prompt
    max_pairs: int  # of each arm
    batch: int  # pairs per step of DPO
    epochs: int
    learning_rates: tuple[float, float]
    arms: tuple[str, ...] = ("identity", "single", "generic", "fused")
    skills: tuple[float, ...] = (0.1,)  # q; the first is the one of P1, P2 and P4
    portions: tuple[float, ...] = ()  # of the fused pairs, for P5
    sequences: bool = False  # P6
    added: bool = False  # also train on identity and fused together
    device: str = "cpu"

    def splits(self) -> dict[str, list[Topic]]:
        """The scale's topics by split: the first ones of the world's."""
        found = [
            [t for t in topics().values() if t.split == split][:n]
            for split, n in zip(SPLITS, self.n_topics, strict=True)
        ]
        return dict(zip(SPLITS, found, strict=True))

    def known(self) -> list[Topic]:
        """Every topic that the base policy knows."""
        return [t for some in self.splits().values() for t in some]


SPLITS = ("train", "pool", "test")
ALL_ARMS = ("identity", "single", "generic", "random", "fused")
SCALES = {
    "toy": Scale(
        "toy",
        Size(1, 64, 2, 600, 32, 1e-2, 100),
        (8, 16, 8),
        4,
        1,
        12,
        8,
        1,
        24,
        8,
        1,
        (1e-3, 2e-3),
        ("identity", "fused"),
        (0.5,),
    ),
    "cpu": Scale(
        "cpu",
        Size(2, 96, 4, 1600, 64, 6e-3, 1000),
        (150, 150, 150),
        60,
        1,
        16,
        100,
        2,
        400,
        16,
        3,
        (2e-4, 1e-3),
    ),
    "gpu": Scale(
        "gpu",
        Size(8, 512, 8, 4000, 256, 1e-3, 1500),
        (1000, 600, 400),
        200,
        4,
        16,
        600,
        4,
        1500,
        64,
        3,
        (5e-6, 2e-5),
        ALL_ARMS,
        (0.1, 0.0, 0.02, 0.3),
        (0.125, 0.25, 0.5, 1.0),
        True,
        True,
        "cuda",
    ),
}


def without_skill(some: Sequence[Topic], n: int, q: float) -> list[Topic]:
    """The first `n` topics of the training split that were seen in plain questions only, as those
    of pool and test are."""
    from .world import skilled

    return [t for t in some if not skilled(t, q, 0)][:n]
