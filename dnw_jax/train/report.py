"""What a run prints at its start and at its end, and the error if it cannot continue."""

from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from dnw_jax.deploy.profile import profile
from dnw_jax.errors import UserError
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.workdir import CHECKPOINTS, TENSORBOARD, WIRING_PICTURES
from dnw_jax.step.state import TrainState
from dnw_jax.train.plan import Plan


def print_start(
    workdir: Path, state: TrainState, config: ConfigDict, plan: Plan, changes: list[str]
) -> None:
    """Prints the parameters, the costs, the devices and the step at which the run begins.

    Args:
      workdir: of the run.
      state: of one seed.
      config, plan: of the run.
      changes: fields that differ from those of the last start (`config_changes`).
    """
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(profile(state.model(), config.dataset.image_size))
    seeds = f", {config.num_seeds} seeds in one program" if config.num_seeds > 1 else ""
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}{seeds}, workdir {workdir}")
    print_changes("changed since the last start (before != now)", changes)
    done = int(state.step)
    if done >= plan.total:
        print(
            f"nothing to do: {done} steps are done, {plan.total} were asked for; "
            "to continue, raise num_epochs or num_steps"
        )
        return
    if done:
        print(f"resuming after step {done} of {plan.total}")
    if plan.trace and not done <= plan.trace[0] < plan.total:
        print(f"profile_steps {plan.trace}: no trace, this run begins at {done}")
    print(
        f"{plan.total} steps, {plan.per_epoch} in an epoch; compiling the first takes a while",
        flush=True,
    )


def print_changes(heading: str, changes: list[str]) -> None:
    """Prints the changed fields of a config below a heading; nothing if no field changed."""
    if changes:
        print("\n  ".join([f"{heading}:", *changes]))


def format_metrics(metrics: dict[str, float]) -> str:
    """Returns loss and accuracy as text, with the standard deviations of means over seeds."""
    loss, accuracy = f"loss {metrics['loss']:.4f}", f"accuracy {metrics['accuracy']:.2%}"
    if "accuracy_std" in metrics:
        loss += f" ± {metrics['loss_std']:.4f}"
        accuracy += f" ± {metrics['accuracy_std']:.2%}"
    return f"{loss}, test {accuracy}"


def seed_prefix(workdirs: list[Path], workdir: Path) -> str:
    """Returns the start of a line about one of several seeds; "" if it is the only seed."""
    return f"{workdir.name}, " if len(workdirs) > 1 else ""


def print_summary(
    workdir: Path,
    workdirs: list[Path],
    states: list[TrainState],
    configs: list[ConfigDict],
    checkpoints_of_seeds: list[Checkpoints],
) -> None:
    """Prints the accuracy of each seed, and where the checkpoints, pictures and curves are.

    Args:
      workdir: of the run.
      workdirs, states, configs, checkpoints_of_seeds: of each seed.
    """
    if checkpoints_of_seeds[0].latest is None:
        return
    print(profile(states[0].model(), configs[0].dataset.image_size))
    for folder, checkpoints in zip(workdirs, checkpoints_of_seeds, strict=True):
        for which, step in (("last", checkpoints.latest), ("best", checkpoints.best)):
            accuracy = None if step is None else checkpoints.accuracy(step)
            if accuracy is not None:
                prefix = seed_prefix(workdirs, folder)
                print(f"{prefix}{which}: test accuracy {accuracy:.2%} (step {step})")
    has_pictures = any((workdirs[0] / WIRING_PICTURES).glob("*.png"))
    of_seeds = workdir / "seed_*" if len(workdirs) > 1 else workdir
    curves = workdir if len(workdirs) > 1 else workdir / TENSORBOARD
    print(
        f"checkpoints: {of_seeds / CHECKPOINTS}\n"
        + (f"wiring pictures: {of_seeds / WIRING_PICTURES}\n" if has_pictures else "")
        + f"TensorBoard: {curves} (pip install tensorboard; tensorboard --logdir {curves})"
    )


def not_finite_error(
    problem: str, step: int, last_step: int | None, config: ConfigDict, workdir: Path
) -> UserError:
    """Returns the error that stops a run with NaN or infinite numbers.

    Args:
      problem: what is not finite.
      step: updates made so far.
      last_step: of the last good checkpoint; None if there is none.
      config, workdir: of the run.
    """
    checkpoint, where = "no checkpoint was saved", ""
    if last_step is not None:
        checkpoint = f"the last good checkpoint is of step {last_step}"
        where = (
            f", in another workdir, or resume in {workdir} (from an earlier checkpoint if you "
            "delete the later ones)"
        )
    cure = f"a smaller optimizer.learning_rate (now {config.optimizer.learning_rate})"
    if config.model.get("wiring") == "continuous":
        # A solve that is not done after max_steps gives NaN.
        cure += f" or a larger model.solver.max_steps (now {config.model.solver.max_steps})"
    return UserError(
        f"{problem} by step {step}, so the run stops; {checkpoint}.\n"
        f"Start again with {cure}{where}."
    )
