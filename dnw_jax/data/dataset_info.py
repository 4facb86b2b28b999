"""The statistics of each dataset, and the settings that each dataset fixes."""

from ml_collections import ConfigDict

from dnw_jax.errors import UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation of each channel, in units where white is 1. `synthetic` has one value
# for all channels. The values of cifar10 are those of the published code, rounded as there.
STATISTICS: dict[str, Statistics] = {
    "digits": ((0.3053,), (0.3760,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "synthetic": ((0.5,), (0.22,)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

# The fields of `config.dataset` that the data determine. The user chooses the others.
_FIXED_FIELDS: dict[str, dict[str, int]] = {
    "digits": {"num_channels": 1, "num_classes": 10},
    "mnist": {"image_size": 28, "num_channels": 1, "num_classes": 10},
    "cifar10": {"image_size": 32, "num_channels": 3, "num_classes": 10},
    "synthetic": {},
    "imagenet2012": {"num_channels": 3, "num_classes": 1000},
}


def check_fields(dataset: ConfigDict) -> None:
    """Checks that the fields fit the data.

    Args:
      dataset: the `dataset` section of a config.

    Raises:
      UserError: fields contradict the data. The message lists all of them.
    """
    wrong = [
        f"  dataset.{field} = {dataset[field]}: must be {value}"
        for field, value in _FIXED_FIELDS[dataset.name].items()
        if dataset[field] != value
    ]
    if dataset.name == "digits" and dataset.image_size < 8:
        wrong.append(f"  dataset.image_size = {dataset.image_size}: must be 8 or more")
    if wrong:
        raise UserError("\n".join([f"These fields contradict dataset {dataset.name!r}:", *wrong]))
