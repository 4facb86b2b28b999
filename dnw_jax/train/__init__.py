"""Training: `train` runs a whole config; the step functions serve a training loop of yours."""

from dnw_jax.step.state import TrainState, create_train_state, evaluate_step, train_step
from dnw_jax.train.loop import train

__all__ = ["TrainState", "create_train_state", "evaluate_step", "train", "train_step"]
