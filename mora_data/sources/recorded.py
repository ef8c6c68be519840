"""`--engine recorded`: what a build becomes when the source's own answers and ratings take the
place of a model's.

    mined prompt with its answers -> rollouts of the arm "recorded" -> ratings -> best pairs

There is nothing to presample, to fuse or to measure anew, so these steps are off, and so is
confirmation. Selection, export and report are the same. `recorded:` in the builder names the
dimensions and ratings that the source has.
"""

from __future__ import annotations

from ..errors import SettingsError
from ..settings import BuildSettings
from . import load, rated

SAID = (
    "recorded answers: the rows' own answers and ratings are used; presampling, fusion and"
    " confirmation are skipped"
)


def as_recorded(settings: BuildSettings) -> tuple[BuildSettings, list[str]]:
    """The settings of a build with recorded answers, and lines to say; any other build as it is.

    Raises:
        SettingsError: the source carries no rated answers, or its card forbids the config sft.
    """
    if settings.policy.engine != "recorded":
        return settings, []
    source, wanted = rated(load(settings.source)), settings.recorded
    if source is None or wanted is None:
        raise SettingsError(
            "--engine recorded needs a source with rated answers and `recorded:` in its builder: "
            f"{settings.source.kind} has {'no such answers' if source is None else 'no such part'}"
        )
    missing = [d for d in wanted.dimensions if not wanted.rewards.get(d)]
    if missing:
        raise SettingsError(
            f"recorded.rewards lacks {', '.join(missing)}: name the rating of each dimension"
        )
    dims, order = wanted.dimensions, settings.publish.stage_order
    publish, lines = (
        settings.publish.model_copy(
            update={
                "stage_order": [d for d in order if d in dims] + [d for d in dims if d not in order]
            }
        ),
        [SAID],
    )
    if source.sft.startswith("refused"):
        from ..dataset.schemas import config_names  # pyarrow comes with it

        known = config_names(dims, publish.stage_order)
        if publish.configs != "all" and "sft" in publish.configs:
            raise SettingsError(
                f"publish.configs names sft: {source.sft.removeprefix('refused: ')}; leave it out"
            )
        lines.append(f"without the config sft: {source.sft.removeprefix('refused: ')}")
        configs = known if publish.configs == "all" else publish.configs
        publish = publish.model_copy(update={"configs": [c for c in configs if c != "sft"]})
    elif source.sft:
        lines.append(f"warning: {source.sft}")
    return (
        settings.model_copy(
            update={
                "dimensions": dims,
                "rewards": wanted.rewards,
                "publish": publish,
                "mine": settings.mine.model_copy(
                    update={"dedup": settings.mine.dedup and source.absolute}
                ),
                "presample": settings.presample.model_copy(update={"enabled": False}),
                "fuse": settings.fuse.model_copy(update={"arms": ["identity"], "targets": "auto"}),
                "select": settings.select.model_copy(update={"confirm": False}),
            }
        ),
        lines,
    )
