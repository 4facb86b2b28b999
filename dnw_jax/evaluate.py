"""Evaluation over every test example, of a state or of a workdir's checkpoint."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from dnw_jax import devices, replicas
from dnw_jax import workdir as layout
from dnw_jax.config import validate
from dnw_jax.feed import Feed, open_feed
from dnw_jax.metrics import Sums
from dnw_jax.report import profiles, said, seed_in, tell_changes
from dnw_jax.train_state import TrainState, evaluate_step, settled


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
    changed = layout.changes(workdir, config)
    tell_changes("not as trained (trained != now)", changed)
    feed = open_feed(config, mesh, train=False)
    own, recipes = replicas.places(config, workdir), replicas.recipes(config)
    pairs = zip(own, recipes, strict=True)
    states = [layout.load_state(place, step, each)[0] for place, each in pairs]
    state = devices.replicate(replicas.stacked(states), mesh)
    results = evaluate_all(state, feed, config.batch_size, mesh)
    steps, count = [int(each.step) for each in states], results[0]["num_examples"]
    for place, values, at in zip(own, results, steps, strict=True):
        print(f"{seed_in(own, place)}step {at}: test {said(values)} over {count} examples")
        layout.write_evaluation(place, {**values, "step": at, "changed": changed})
    if len(own) == 1:
        return results[0]
    means = replicas.means_and_deviations(results, [place.name for place in own])
    print(f"mean and standard deviation: test {said(means)}")
    step_of_all = steps[0] if len(set(steps)) == 1 else steps
    more = {"num_examples": count, "step": step_of_all, "changed": changed}
    layout.write_evaluation(workdir, {**means, **more})
    return means


def print_profile(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> None:
    """Prints what the network of a checkpoint costs; arguments and errors as those of `evaluate`.

    MobileNetV1-like chains also as the published code counts them. Of several seeds each network.
    """
    validate(config)
    workdir = Path(workdir)
    layout.changes(workdir, config)
    own, size = replicas.places(config, workdir), config.dataset.image_size
    for place, recipe in zip(own, replicas.recipes(config), strict=True):
        state, _ = layout.load_state(place, step, recipe)
        print(f"{seed_in(own, place)}step {int(state.step)}, one image of {size} pixels a side:")
        print("\n".join(profiles(state.model(), recipe)))


def evaluate_all(
    state: TrainState, feed: Feed, batch_size: int, mesh: Mesh
) -> list[dict[str, float]]:
    """Of each seed averages over every test example and `num_examples`, whatever the batch size."""
    state, sums = settled(state), Sums.zero(state.step.shape)
    batch_size += -batch_size % mesh.size  # the padding fills up what does not split evenly
    for batch in feed.evaluation_batches(batch_size):
        sums += evaluate_step(state, batch)
    skipped = {"skipped": feed.skipped_test} if feed.skipped_test else {}
    return [
        {**own.averages(), "num_examples": int(own.examples), **skipped}
        for own in replicas.parted(sums, state.step.size)
    ]
