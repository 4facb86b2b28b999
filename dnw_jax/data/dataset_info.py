"""What is fixed about each dataset."""

from ml_collections import ConfigDict

from dnw_jax.errors import UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation per channel, in units where white is 1. One value stands for all
# channels of `synthetic`; cifar10's are the reference's, rounded as there.
STATISTICS: dict[str, Statistics] = {
    "digits": ((0.3053,), (0.3760,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "synthetic": ((0.5,), (0.22,)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

# What the data fix of `config.dataset`; the other fields are the user's choice.
_FIXED_FIELDS: dict[str, dict[str, int]] = {
    "digits": {"num_channels": 1, "num_classes": 10},
    "mnist": {"image_size": 28, "num_channels": 1, "num_classes": 10},
    "cifar10": {"image_size": 32, "num_channels": 3, "num_classes": 10},
    "synthetic": {},
    "imagenet2012": {"num_channels": 3, "num_classes": 1000},
}


def check_fields(dataset: ConfigDict) -> None:
    """Raises UserError if fields contradict the data: all such fields are listed."""
    wrong = [
        f"  dataset.{field}={dataset[field]}, must be {right}"
        for field, right in _FIXED_FIELDS[dataset.name].items()
        if dataset[field] != right
    ]
    if dataset.name == "digits" and dataset.image_size < 8:
        wrong.append(f"  dataset.image_size={dataset.image_size}, must be 8 or more")
    if wrong:
        raise UserError("\n".join([f"These fields contradict dataset {dataset.name!r}:", *wrong]))
