"""Sizes of the experiment, fixed before it is run: `cpu` for two cores, `gpu` for one large GPU,
`toy` for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .world import Topic, skilled, world


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
    n: int  # plain pairs, and as many added
    n_few: int  # the same where every dimension asked for has to win
    sizes: tuple[int, ...]  # n, in the piece of that name
    batch: int  # pairs per step of DPO
    rates: tuple[float, ...]  # learning rates to choose from
    rate: float  # the one of every piece
    gate: float  # mean helpful reward on plain H questions, under which the base is trained on
    device: str = "cpu"

    def splits(self) -> dict[str, list[Topic]]:
        """The scale's topics by split: the first ones of the world's."""
        found = [
            [t for t in _topics() if t.split == split][:n]
            for split, n in zip(SPLITS, self.n_topics, strict=True)
        ]
        return dict(zip(SPLITS, found, strict=True))

    def known(self) -> list[Topic]:
        """Every topic that the base policy knows."""
        return [t for some in self.splits().values() for t in some]


@lru_cache(maxsize=1)
def _topics() -> list[Topic]:
    return world(seed=0)


SPLITS = ("train", "pool", "test")
FORMS = ("plain", "fused", "held_out")  # of a test question
TEST_ANSWERS = 2  # to each
SCALES = {
    "toy": Scale(
        name="toy",
        model=Size(1, 64, 2, 300, 32, 1e-2, 100),
        n_topics=(8, 16, 8),
        n_dev=4,
        n=6,
        n_few=3,
        sizes=(3,),
        batch=4,
        rates=(1e-3,),
        rate=1e-3,
        gate=0.0,
    ),
    "cpu": Scale(
        name="cpu",
        model=Size(2, 96, 4, 2000, 64, 6e-3, 1000),
        n_topics=(150, 150, 150),
        n_dev=60,
        n=300,
        n_few=230,
        sizes=(100, 300, 1000),
        batch=16,
        rates=(2e-4, 5e-4, 1e-3),
        rate=5e-4,
        gate=0.8,
    ),
    "gpu": Scale(
        name="gpu",
        model=Size(8, 512, 8, 4000, 256, 1e-3, 1500),
        n_topics=(1000, 600, 400),
        n_dev=200,
        n=1200,
        n_few=800,
        sizes=(300, 1200, 4000),
        batch=64,
        rates=(5e-6, 2e-5, 1e-4),
        rate=2e-5,
        gate=0.8,
        device="cuda",
    ),
}


def without_skill(some: Sequence[Topic], n: int, q: float) -> list[Topic]:
    """The first `n` topics of the training split that were seen in plain questions only, as those
    of pool and test are."""
    return [t for t in some if not skilled(t, q, 0)][:n]
