"""Every setting of a run: its name, default and allowed values.

`SHARED` lists the settings of every run, one a line. `MODELS` lists each model with the settings
that only it has. The constraints say which combinations of settings are allowed.

`integer(512, 1)` is a whole number with default 512, at least 1. `choice("a", "b")` is "a" or "b",
by default "a". `flag(True)` is true or false, by default true. `fraction(0.9)` is a number in
[0, 1), `positive(x)` a number > 0, `at_least_0(x)` a number >= 0.
"""

import math

from dnw_jax.config.fields import (
    Constraint,
    Field,
    Model,
    at_least_0,
    choice,
    flag,
    fraction,
    integer,
    number,
    positive,
)
from dnw_jax.config.fixed_steps import num_fixed_steps

SOLVERS = ("dopri5", "tsit5", "euler")

EDGES = (
    "dnw",
    "random",
    "complete",
    "dnw_no_update",
    "targeted_dropout",
    "targeted_dropout_per_node",
    "fine_tune",
    "lottery_ticket",
    "l1_anneal",
    "constant_fan_in",
)

# The settings of every model that chooses edges.
EDGE_FIELDS = {
    # The rule that chooses the edges (Table 3 of the paper).
    "model.edges": choice(*EDGES),
    # targeted_dropout and targeted_dropout_per_node: the probability that training drops an edge
    # outside the budget.
    "model.rho": number(0.95, "in [0, 1]", lambda x: 0 <= x <= 1),
    # l1_anneal: the factor of sum(|w|) in the loss.
    "model.l1": at_least_0(1e-5),
    # l1_anneal: the part of the run in which the number of edges falls from all to the budget.
    "model.anneal": number(0.5, "in (0, 1]", lambda x: 0 < x <= 1),
}
NEEDS_TRAINED_RUN = Constraint(
    ("model.edges", "init_from"),
    "init_from must name the workdir of a run with model.edges=complete; its top edges are kept",
    lambda edges, init_from: edges not in ("fine_tune", "lottery_ticket") or init_from != "",
)


def _width(default: float) -> Field:
    """A factor of every number of channels."""
    return number(default, ">= 1/32", lambda factor: factor >= 1 / 32)


MODELS = {
    # The tiny classifiers of Table 1.
    "tiny": Model(
        fields={
            "model.wiring": choice("static", "discrete", "continuous"),
            "model.sparsity": fraction(0.95),  # the share of possible edges that are not real
            # All nodes; the inputs (the stem's channels) and the outputs are among them.
            "model.num_nodes": integer(800, 1),
            "model.num_inputs": integer(32, 2),
            "model.num_outputs": integer(100, 1),
            # static: the number of blocks; discrete: of time steps; continuous: not used.
            "model.depth": integer(5, 1),
            "model.solver.name": choice(*SOLVERS),
            "model.solver.rtol": positive(1e-3),
            "model.solver.atol": positive(1e-3),
            # The solve runs from t = 0 to 1. 0 makes the steps adaptive.
            "model.solver.step_size": number(0.0, "in [0, 1]", lambda x: 0 <= x <= 1),
            "model.solver.max_steps": integer(256, 1),
            **EDGE_FIELDS,
        },
        constraints=(
            NEEDS_TRAINED_RUN,
            Constraint(
                ("model.num_nodes", "model.num_inputs", "model.num_outputs"),
                "num_inputs + num_outputs must be at most num_nodes",
                lambda nodes, inputs, outputs: inputs + outputs <= nodes,
            ),
            Constraint(
                ("model.wiring", "model.depth", "model.num_nodes", "model.num_inputs"),
                "the blocks of a static graph are of one size: depth must be at least 2, "
                "and num_nodes - num_inputs a multiple of depth - 1",
                lambda wiring, depth, nodes, inputs: (
                    wiring != "static" or (depth >= 2 and (nodes - inputs) % (depth - 1) == 0)
                ),
            ),
            Constraint(
                (
                    "model.wiring",
                    "model.depth",
                    "model.num_nodes",
                    "model.num_inputs",
                    "model.num_outputs",
                ),
                "the outputs of a static graph lie in its last block: num_outputs must be at most "
                "(num_nodes - num_inputs) / (depth - 1)",
                lambda wiring, depth, nodes, inputs, outputs: (
                    wiring != "static" or outputs * (depth - 1) <= nodes - inputs
                ),
            ),
            Constraint(
                ("model.wiring", "model.solver.name", "model.solver.step_size"),
                "euler estimates no error: it needs a step_size > 0",
                lambda wiring, name, step_size: (
                    wiring != "continuous" or name != "euler" or step_size > 0
                ),
            ),
            Constraint(
                ("model.wiring", "model.solver.step_size", "model.solver.max_steps"),
                "max_steps steps of step_size must reach the end of the solve, t = 1",
                lambda wiring, step_size, max_steps: (
                    wiring != "continuous" or num_fixed_steps(step_size) <= max_steps
                ),
            ),
        ),
    ),
    # MobileNetV1 as a chain of static graphs: Tables 2 and 3.
    "mbv1": Model(
        fields={
            # 1 - the multiplier of the paper's tables. The graphs have as many real edges as a
            # MobileNetV1 with 1 - sparsity of the channels has 1x1 weights. The share of possible
            # edges that are not real is larger.
            "model.sparsity": fraction(0.775),
            "model.width": _width(1.0),
            "model.small": flag(False),  # makes the last linear layer a graph, too
            **EDGE_FIELDS,
        },
        constraints=(NEEDS_TRAINED_RUN,),
    ),
    # The dense MobileNetV1: the baseline of Tables 2 and 3.
    "mobilenet": Model(fields={"model.width": _width(0.25)}),
    # ResNets of sparse convolutions: Table 4.
    "resnet": Model(
        fields={
            "model.arch": choice("resnet50", "resnet18", "resnet34", "resnet101", "resnet152"),
            "model.sparsity": fraction(0.9),  # the share of each kernel's weights that are not real
            "model.first_layer": choice("sparse", "dense"),  # dense: keeps all of its weights
            "model.small_images": flag(False),  # true: a 3x3 stem without stride or pooling
            "model.width": _width(1.0),
            **EDGE_FIELDS,
            # The published code uses the sparsity here.
            "model.rho": Field(
                None,
                float,
                "a number in [0, 1], or None: the sparsity",
                lambda x: 0 <= x <= 1,
                optional=True,
            ),
        },
        constraints=(NEEDS_TRAINED_RUN,),
    ),
}


def is_milestones(milestones: tuple[float, ...]) -> bool:
    """Returns whether all are finite, above 0, and each is later than the one before."""
    return all(
        math.isfinite(later) and earlier < later
        for earlier, later in zip((0.0, *milestones), milestones, strict=False)
    )


def is_step_range(steps: tuple[int, ...]) -> bool:
    """Returns whether these are two steps, the first before the last."""
    return len(steps) == 2 and 0 <= steps[0] < steps[1]


SHARED = {
    "seed": Field(0, int, "an integer in [0, 2**32)", lambda n: 0 <= n < 2**32),
    "num_seeds": integer(1, 1),  # trained at once: `seed`, `seed` + 1, ...
    "batch_size": integer(512, 1),  # examples of one step, on all devices together
    "num_epochs": integer(160, 1),
    "num_steps": integer(None, 1),  # None: num_epochs times the steps of an epoch
    "dtype": choice("float32", "bfloat16"),  # of the computation; parameters are float32
    "accumulate_steps": integer(1, 1),  # parts of a batch that are computed one after the other
    # The run starts from the weights of this workdir, or of one of its checkpoints.
    "init_from": Field("", str, "a workdir, one of its checkpoints, or nothing"),
    # Writes a jax.profiler trace of these steps to the workdir.
    "profile_steps": Field(
        None, tuple, "(first, last) with first < last, or None", is_step_range, int, optional=True
    ),
    "dataset.name": choice("cifar10", "mnist", "digits", "synthetic", "imagenet2012"),
    "dataset.data_dir": Field("", str, "a folder, or nothing for the default of TFDS"),
    "dataset.image_size": Field(32, int, "an integer in [8, 4096]", lambda n: 8 <= n <= 4096),
    "dataset.num_channels": integer(3, 1),
    "dataset.num_classes": integer(10, 2),
    # Pixels added on each side before a random crop in training; 0: no crop. Not for ImageNet.
    "dataset.crop_padding": integer(4, 0),
    "dataset.flip": flag(True),  # mirrors half of the training images
    # ImageNet only. True: training crops a random part; false: the central square.
    "dataset.random_resized_crop": flag(True),
    # ImageNet only: processes that decode photographs. None: one for each core; 0: threads.
    "dataset.num_workers": integer(None, 0),
    # ImageNet only. A damaged photograph ends the run, or is skipped and counted.
    "dataset.on_error": choice("raise", "skip"),
    "model.name": choice(*MODELS),
    # Stochastic gradient descent with momentum.
    "optimizer.learning_rate": at_least_0(0.1),
    "optimizer.momentum": fraction(0.9),
    "optimizer.weight_decay": at_least_0(1e-4),
    # Parameters whose path contains this text are not decayed. Empty: all are decayed.
    "optimizer.no_decay": Field("", str, 'a part of paths such as "bn", or nothing'),
    "optimizer.nesterov": flag(False),
    "schedule.name": choice("multistep", "cosine", "linear", "exponential", "constant"),
    # multistep only. A number below 1 is a fraction of the run, any other an epoch.
    "schedule.milestones": Field(
        (0.5, 0.75), tuple, "numbers > 0, each larger than the one before", is_milestones, float
    ),
    # The learning rate's factor: multistep at each milestone, exponential after each epoch.
    "schedule.factor": number(0.1, "in (0, 1]", lambda x: 0 < x <= 1),
    # The learning rate rises linearly for so many epochs; then the schedule begins.
    "schedule.warmup_epochs": at_least_0(0.0),
    # True: the learning rate changes only at the start of an epoch; false: at every step.
    "schedule.per_epoch": flag(False),
    "loss.label_smoothing": fraction(0.0),
    # The exponential moving average of the parameters is evaluated. 0: no average.
    "ema.decay": fraction(0.0),
    "evaluate.every_steps": integer(0, 0),  # 0: at the end of each epoch
    "checkpoint.every_steps": integer(0, 0),  # 0: after each evaluation
    "checkpoint.keep": integer(3, 1),  # the latest checkpoints; the best one is kept besides
    "log.every_steps": integer(50, 1),
}

SHARED_CONSTRAINTS = (
    Constraint(
        ("seed", "num_seeds"),
        "seed + num_seeds must be at most 2**32, because the largest seed is 2**32 - 1",
        lambda seed, num_seeds: seed + num_seeds <= 2**32,
    ),
    Constraint(
        ("num_seeds", "dataset.name"),
        "num_seeds must be 1 for imagenet2012: start one run for each seed",
        lambda num_seeds, name: num_seeds == 1 or name != "imagenet2012",
    ),
    Constraint(
        ("num_seeds", "checkpoint.keep"),
        "checkpoint.keep must be at least 2 with several seeds: each is saved by itself",
        lambda num_seeds, keep: num_seeds == 1 or keep > 1,
    ),
    Constraint(
        ("batch_size", "accumulate_steps"),
        "batch_size must be a multiple of accumulate_steps",
        lambda batch_size, steps: batch_size % steps == 0,
    ),
    Constraint(
        ("dataset.crop_padding", "dataset.image_size"),
        "crop_padding must be smaller than image_size, else a crop may be empty",
        lambda padding, size: padding < size,
    ),
    Constraint(
        ("schedule.warmup_epochs", "num_epochs", "num_steps"),
        "warmup_epochs must be smaller than num_epochs",
        lambda warmup, epochs, steps: steps is not None or warmup < epochs,
    ),
)


def fields_of(model_name: object) -> dict[str, Field]:
    """Returns the fields of a run with this model.

    For an unknown model it returns the fields of all models, so that only the name is reported.
    """
    model_fields = [model.fields for name, model in MODELS.items() if model_name == name] or [
        model.fields for model in MODELS.values()
    ]
    return {**SHARED, **{name: field for fields in model_fields for name, field in fields.items()}}


def constraints_of(model_name: object) -> tuple[Constraint, ...]:
    """Returns the constraints of a run with this model."""
    models = [model for name, model in MODELS.items() if name == model_name]
    return SHARED_CONSTRAINTS + tuple(
        constraint for model in models for constraint in model.constraints
    )
