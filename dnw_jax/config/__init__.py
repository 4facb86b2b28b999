"""The configuration of a run: every field, its default and what is allowed. Imports no jax."""

from dnw_jax.config.load import (
    CONFIG_FILE,
    differing_fields,
    from_json,
    load_config,
    to_json,
    validate,
)

__all__ = [
    "CONFIG_FILE",
    "differing_fields",
    "from_json",
    "load_config",
    "to_json",
    "validate",
]
