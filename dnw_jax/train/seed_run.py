"""One seed of a run: what it writes into its workdir."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from dnw_jax.models import edge_layers
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.workdir import checkpoint_tree, write_evaluation
from dnw_jax.run.writers import Writer
from dnw_jax.show.adjacency import adjacency_picture
from dnw_jax.step.metrics import Sums, edge_churn
from dnw_jax.step.state import TrainState
from dnw_jax.train.plan import Plan

Masks = dict[str, Array]  # which edges are real, bool, by the name of the layer


@dataclass
class SeedRun:
    """One seed of a run, with its config (`num_seeds` is 1), its workdir and the open files."""

    config: ConfigDict
    workdir: Path
    plan: Plan
    checkpoints: Checkpoints
    writer: Writer

    def write_training_row(
        self,
        step: int,
        sums: Sums,
        old_masks: Masks,
        masks: Masks,
        more: dict[str, float],
    ) -> dict[str, float]:
        """Writes and returns the metrics of training since the last row.

        For each layer `live_edges/NAME` counts the real edges. Some of them may carry no signal to
        a logit; `deploy.profile` leaves those out of its "live edges". `edge_churn/NAME` is the
        share of the real edges that were not real at the last row.

        Args:
          step: updates made so far.
          sums: over the training examples since the last row.
          old_masks: the real edges at the last row.
          masks: the real edges now.
          more: metrics that do not depend on the seed.
        """
        metrics = sums.averages() | more
        for name, mask in masks.items():
            num_real, share_new = edge_churn(old_masks[name], mask)
            metrics[f"live_edges/{name}"] = int(num_real)
            metrics[f"edge_churn/{name}"] = float(share_new)
        self.writer.scalars(step, step / self.plan.per_epoch, "train", metrics)
        return metrics

    def write_evaluation(
        self, step: int, state: TrainState, masks: Masks, metrics: dict[str, Any]
    ) -> None:
        """Writes the metrics of an evaluation, and pictures of the wiring at that step."""
        self.writer.scalars(step, step / self.plan.per_epoch, "test", metrics)
        write_evaluation(self.workdir, {**metrics, "step": step, "changed": []})
        for name, layer in edge_layers(state.model()).items():
            if layer.weights.ndim == 2:  # a graph; not a convolution
                picture = adjacency_picture(np.asarray(layer.weights), np.asarray(masks[name]))
                self.writer.picture(step, name, picture)

    def save(self, step: int, state: TrainState, accuracy: float | None = None) -> None:
        """Saves a checkpoint; one with a test `accuracy` can become the best checkpoint."""
        self.checkpoints.save(step, checkpoint_tree(state), accuracy)

    def is_annealing(self, state: TrainState, masks: Masks) -> bool:
        """Returns whether an annealed wiring still has more edges than it will have in the end."""
        layers = edge_layers(state.model())
        return self.config.model.get("edges") == "l1_anneal" and any(
            int(mask.sum()) > layers[name].num_edges for name, mask in masks.items()
        )
