"""What a run says at its start and at its end."""

from pathlib import Path

import jax
from clu import parameter_overview
from flax import nnx
from ml_collections import ConfigDict

from dnw_jax.deploy.profile import profile
from dnw_jax.run import workdir as layout
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.step.state import TrainState
from dnw_jax.train.plan import Plan


def print_start(
    workdir: Path, state: TrainState, config: ConfigDict, plan: Plan, changed: list[str]
) -> None:
    """Says what is about to happen: the parameters, the devices, where the run stands."""
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(profile(state.model(), config.dataset.image_size))
    seeds = f", {config.num_seeds} seeds in one program" if config.num_seeds > 1 else ""
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}{seeds}, workdir {workdir}")
    print_changes("changed since the last start (before != now)", changed)
    done = int(state.step)
    if done >= plan.total:
        print(
            f"nothing to do: {done} steps are done, {plan.total} were asked for; "
            "to go on, raise num_epochs or num_steps"
        )
        return
    if done:
        print(f"resuming after step {done} of {plan.total}")
    if plan.profile and not done <= plan.profile[0] < plan.total:
        print(f"profile_steps {plan.profile}: no trace, this run begins at {done}")
    print(
        f"{plan.total} steps, {plan.per_epoch} in an epoch; compiling the first takes a while",
        flush=True,
    )


def print_changes(heading: str, changed: list[str]) -> None:
    """Says what differs from the config that the run was last started with, if anything does."""
    if changed:
        print("\n  ".join([f"{heading}:", *changed]))


def profiles(model: nnx.Module, config: ConfigDict) -> list[str]:
    """What a network costs, and what the published code would say of it where it counts."""
    size = config.dataset.image_size
    tables = [str(profile(model, size))]
    if config.model.name == "mbv1":
        tables += [
            "",
            "as the published code counts (for 224 pixels):",
            str(profile(model, size, "reference")),
        ]
    return tables


def format_metrics(values: dict[str, float]) -> str:
    """Loss and accuracy in words, with the standard deviations over the seeds if there are."""
    loss, accuracy = f"loss {values['loss']:.4f}", f"accuracy {values['accuracy']:.2%}"
    if "accuracy_std" in values:
        loss += f" ± {values['loss_std']:.4f}"
        accuracy += f" ± {values['accuracy_std']:.2%}"
    return f"{loss}, test {accuracy}"


def seed_in(places: list[Path], place: Path) -> str:
    """The start of a line about one of several seeds; nothing, if it is the only one."""
    return f"{place.name}, " if len(places) > 1 else ""


def print_summary(
    workdir: Path,
    places: list[Path],
    states: list[TrainState],
    configs: list[ConfigDict],
    all_checkpoints: list[Checkpoints],
) -> None:
    """Says what came out of each seed, whose workdirs are `places`, and where to look at it."""
    if all_checkpoints[0].latest is None:
        return
    print(profile(states[0].model(), configs[0].dataset.image_size))
    for place, checkpoints in zip(places, all_checkpoints, strict=True):
        for which, step in (("last", checkpoints.latest), ("best", checkpoints.best)):
            accuracy = None if step is None else checkpoints.accuracy(step)
            if accuracy is not None:
                print(
                    f"{seed_in(places, place)}{which}: test accuracy {accuracy:.2%} (step {step})"
                )
    pictures = any((places[0] / layout.WIRING).glob("*.png"))
    each = workdir / "seed_*" if len(places) > 1 else workdir
    curves = workdir if len(places) > 1 else workdir / layout.TENSORBOARD
    print(
        f"checkpoints: {each / layout.CHECKPOINTS}\n"
        + (f"wiring pictures: {each / layout.WIRING}\n" if pictures else "")
        + f"TensorBoard: {curves} (pip install tensorboard; tensorboard --logdir {curves})"
    )
