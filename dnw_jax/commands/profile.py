"""`--mode=profile`: what the network of a checkpoint costs."""

from pathlib import Path

from ml_collections import ConfigDict

from dnw_jax.config import validate
from dnw_jax.run import workdir as layout
from dnw_jax.train import seeds
from dnw_jax.train.report import profiles, seed_prefix


def print_profile(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> None:
    """Prints what the network of a checkpoint costs; arguments and errors as those of `evaluate`.

    MobileNetV1-like chains also as the published code counts them. Of several seeds each network.
    """
    validate(config)
    workdir = Path(workdir)
    layout.config_changes(workdir, config)
    own, size = seeds.seed_workdirs(config, workdir), config.dataset.image_size
    for place, recipe in zip(own, seeds.seed_configs(config), strict=True):
        state, _ = layout.load_state(place, step, recipe)
        print(
            f"{seed_prefix(own, place)}step {int(state.step)}, one image of {size} pixels a side:"
        )
        print("\n".join(profiles(state.model(), recipe)))
