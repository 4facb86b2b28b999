"""`--mode=evaluate`: the accuracy of a checkpoint on every test example."""

from pathlib import Path

from ml_collections import ConfigDict

from dnw_jax.config import validate
from dnw_jax.platform import agreement, devices
from dnw_jax.run.workdir import config_changes, load_model, write_evaluation
from dnw_jax.step.state import evaluation_state
from dnw_jax.train import seeds
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import check_same_run, open_feed
from dnw_jax.train.report import format_metrics, print_changes, seed_prefix


@agreement.quiet_unless_first()
def evaluate(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> dict[str, float]:
    """Evaluates a checkpoint of `workdir` on every test example; prints and writes the result.

    Args:
      config: of the same model. The data and the batch size may differ from those of the run.
      workdir: of the run. If it has several seeds, each of them is evaluated.
      step: as for `dnw_jax.load`.

    Returns:
      The averages, as in `evaluation.json`: `loss`, `accuracy`, `accuracy_top5`. For several seeds
      their means, their standard deviations (`loss_std`) and the values of each seed.

    Raises:
      UserError: as `dnw_jax.load`; the data are missing; or `config` describes another model.
    """
    workdir, mesh = Path(workdir), devices.data_mesh()
    with agreement.together():
        validate(config)
        changes = config_changes(workdir, config)
        print_changes("not as trained (trained != now)", changes)
        feed = open_feed(config, mesh, train=False)
        workdirs = seeds.seed_workdirs(config, workdir)
        trained = [
            load_model(seed_workdir, step, seed_config)
            for seed_workdir, seed_config in zip(workdirs, seeds.seed_configs(config), strict=True)
        ]
    check_same_run(config, feed)
    states = agreement.from_first([evaluation_state(model) for model, _, _ in trained])
    state = devices.replicate(seeds.stack_seeds(states), mesh)
    results = evaluate_all(state, feed, config.batch_size, mesh)
    steps = [seed.step for seed in trained]
    with agreement.together():
        return _report(workdir, workdirs, results, steps, changes)


def _report(
    workdir: Path,
    workdirs: list[Path],
    results: list[dict[str, float]],
    steps: list[int],
    changes: list[str],
) -> dict[str, float]:
    """Prints and writes the results of each seed and their means, which it returns."""
    num_examples = results[0]["num_examples"]
    for seed_workdir, averages, number in zip(workdirs, results, steps, strict=True):
        print(
            f"{seed_prefix(workdirs, seed_workdir)}step {number}: test {format_metrics(averages)} "
            f"over {num_examples} examples"
        )
        write_evaluation(seed_workdir, {**averages, "step": number, "changed": changes})
    if len(workdirs) == 1:
        return results[0]
    means = seeds.means_and_deviations(results, [folder.name for folder in workdirs])
    print(f"mean and standard deviation: test {format_metrics(means)}")
    common_step = steps[0] if len(set(steps)) == 1 else steps
    details = {"num_examples": num_examples, "step": common_step, "changed": changes}
    write_evaluation(workdir, {**means, **details})
    return means
