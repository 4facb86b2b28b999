"""`--mode=profile`: prints what the network in a checkpoint costs."""

from pathlib import Path

from ml_collections import ConfigDict

from dnw_jax.config import validate
from dnw_jax.deploy.profile import profile
from dnw_jax.platform.agreement import quiet_unless_first
from dnw_jax.run.workdir import config_changes, load_model
from dnw_jax.train import seeds
from dnw_jax.train.report import seed_prefix


@quiet_unless_first()
def print_profile(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> None:
    """Prints parameters and multiply-adds of the network in a checkpoint of `workdir`.

    MobileNetV1-like chains are also counted as the published code counts them.

    Args:
      config: of the same model.
      workdir: of the run. If it has several seeds, the network of each of them is printed.
      step: as for `dnw_jax.load`.

    Raises:
      UserError: as `dnw_jax.load`; or `config` describes another model.
    """
    validate(config)
    workdir, size = Path(workdir), config.dataset.image_size
    config_changes(workdir, config)
    workdirs = seeds.seed_workdirs(config, workdir)
    for seed_workdir, seed_config in zip(workdirs, seeds.seed_configs(config), strict=True):
        trained = load_model(seed_workdir, step, seed_config)
        prefix = seed_prefix(workdirs, seed_workdir)
        print(f"{prefix}step {trained.step}, one image of {size} pixels a side:")
        print(profile(trained.model, size))
        if config.model.name == "mbv1":
            print("\nas the published code counts (for 224 pixels):")
            print(profile(trained.model, size, "reference"))
