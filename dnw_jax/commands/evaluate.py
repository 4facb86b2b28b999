"""`--mode=evaluate`: the accuracy of a checkpoint on every test example."""

from pathlib import Path

from ml_collections import ConfigDict

from dnw_jax.config import validate
from dnw_jax.platform import devices
from dnw_jax.run import workdir as layout
from dnw_jax.train import seeds
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import open_feed
from dnw_jax.train.report import format_metrics, print_changes, seed_prefix


def evaluate(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> dict[str, float]:
    """Evaluates a checkpoint of `workdir` on every test example; prints and notes the result.

    Of several seeds each, and then their means and standard deviations.

    Args:
      config: of the same model; it may name other data or another batch size than the run's own.
      workdir: of the run.
      step: as in `dnw_jax.load`.

    Raises:
      UserError: as `dnw_jax.load`, and if the data are missing or `config` is of another model.
    """
    validate(config)
    workdir, mesh = Path(workdir), devices.data_mesh()
    changed = layout.config_changes(workdir, config)
    print_changes("not as trained (trained != now)", changed)
    feed = open_feed(config, mesh, train=False)
    own, recipes = seeds.seed_workdirs(config, workdir), seeds.seed_configs(config)
    pairs = zip(own, recipes, strict=True)
    states = [layout.load_state(place, step, each)[0] for place, each in pairs]
    state = devices.replicate(seeds.stack_seeds(states), mesh)
    results = evaluate_all(state, feed, config.batch_size, mesh)
    steps, count = [int(each.step) for each in states], results[0]["num_examples"]
    for place, values, at in zip(own, results, steps, strict=True):
        print(
            f"{seed_prefix(own, place)}step {at}: test {format_metrics(values)} "
            f"over {count} examples"
        )
        layout.write_evaluation(place, {**values, "step": at, "changed": changed})
    if len(own) == 1:
        return results[0]
    means = seeds.means_and_deviations(results, [place.name for place in own])
    print(f"mean and standard deviation: test {format_metrics(means)}")
    step_of_all = steps[0] if len(set(steps)) == 1 else steps
    more = {"num_examples": count, "step": step_of_all, "changed": changed}
    layout.write_evaluation(workdir, {**means, **more})
    return means
