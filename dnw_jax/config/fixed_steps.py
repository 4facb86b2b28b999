"""How many fixed steps an ODE solve takes. The settings' check and the solver share this count."""

import math


def num_fixed_steps(step_size: float) -> int:
    """Returns the number of steps of `step_size` from t = 0 to 1; the last one may be shorter.

    A remainder of less than a millionth of a step is a rounding error and makes no further step.
    `step_size` 0 stands for adaptive steps, whose number is not known: returns 0.
    """
    return math.ceil(1 / step_size - 1e-6) if step_size else 0
