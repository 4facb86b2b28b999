"""Training: `train` runs a whole config.

This folder holds the loop over the steps of a run; the folder `run` holds the files that a run has
on disk, the folder `step` what one step computes. The functions of `step` are re-exported here for
a training loop that you write yourself.
"""

from dnw_jax.step.state import TrainState, create_train_state, evaluate_step, train_step
from dnw_jax.train.loop import train

__all__ = ["TrainState", "create_train_state", "evaluate_step", "train", "train_step"]
