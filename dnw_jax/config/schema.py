"""Every setting of a run: its name, default and allowed values, each in one line.

A setting that all models share is a line of `SHARED`; a model is one entry of `MODELS`, with the
fields and rules that only it has.
"""

import math

from dnw_jax.config.fields import (
    Field,
    Model,
    Rule,
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

# Of every model that chooses edges.
RULE_FIELDS = {
    "model.edges": choice(*EDGES),
    "model.rho": number(0.95, "in [0, 1]", lambda x: 0 <= x <= 1),  # targeted dropout's
    "model.l1": at_least_0(1e-5),  # l1_anneal's: the penalty on the sum of |w|
    "model.anneal": number(0.5, "in (0, 1]", lambda x: 0 < x <= 1),  # l1_anneal's part of the run
}
NEEDS_TRAINED = Rule(
    ("model.edges", "init_from"),
    "init_from must name the workdir of a run with model.edges=complete, whose top edges these are",
    lambda edges, init_from: edges not in ("fine_tune", "lottery_ticket") or init_from != "",
)


def _width(default: float) -> Field:
    """A factor of all numbers of channels."""
    return number(default, ">= 1/32", lambda factor: factor >= 1 / 32)


MODELS = {
    "tiny": Model(
        fields={
            "model.wiring": choice("static", "discrete", "continuous"),
            "model.sparsity": fraction(0.95),
            "model.num_nodes": integer(800, 1),
            "model.num_inputs": integer(32, 2),
            "model.num_outputs": integer(100, 1),
            # Blocks of a static graph, time steps of a discrete one.
            "model.depth": integer(5, 1),
            "model.solver.name": choice(*SOLVERS),
            "model.solver.rtol": positive(1e-3),
            "model.solver.atol": positive(1e-3),
            # The solve runs from t = 0 to 1. 0 makes the steps adaptive.
            "model.solver.step_size": number(0.0, "in [0, 1]", lambda x: 0 <= x <= 1),
            "model.solver.max_steps": integer(256, 1),
            **RULE_FIELDS,
        },
        rules=(
            NEEDS_TRAINED,
            Rule(
                ("model.num_nodes", "model.num_inputs", "model.num_outputs"),
                "num_inputs + num_outputs must be at most num_nodes",
                lambda nodes, inputs, outputs: inputs + outputs <= nodes,
            ),
            Rule(
                ("model.wiring", "model.depth", "model.num_nodes", "model.num_inputs"),
                "the blocks of a static graph are of one size: depth must be at least 2, "
                "and num_nodes - num_inputs a multiple of depth - 1",
                lambda wiring, depth, nodes, inputs: (
                    wiring != "static" or (depth >= 2 and (nodes - inputs) % (depth - 1) == 0)
                ),
            ),
            Rule(
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
            Rule(
                ("model.wiring", "model.solver.name", "model.solver.step_size"),
                "euler estimates no error: it needs a step_size > 0",
                lambda wiring, name, step_size: (
                    wiring != "continuous" or name != "euler" or step_size > 0
                ),
            ),
            Rule(
                ("model.wiring", "model.solver.step_size", "model.solver.max_steps"),
                "max_steps steps of step_size must reach the end of the solve, t = 1",
                lambda wiring, step_size, max_steps: (
                    wiring != "continuous" or num_fixed_steps(step_size) <= max_steps
                ),
            ),
        ),
    ),
    # Chains of static graphs.
    "mbv1": Model(
        fields={
            "model.sparsity": fraction(0.775),  # 1 - the multiplier of the paper's tables
            "model.width": _width(1.0),
            "model.small": flag(False),
            **RULE_FIELDS,
        },
        rules=(NEEDS_TRAINED,),
    ),
    "mobilenet": Model(fields={"model.width": _width(0.25)}),
    # Sparse convolutions.
    "resnet": Model(
        fields={
            "model.arch": choice("resnet50", "resnet18", "resnet34", "resnet101", "resnet152"),
            "model.sparsity": fraction(0.9),
            "model.first_layer": choice("sparse", "dense"),
            "model.small_images": flag(False),  # a 3x3 stem without stride or pooling
            "model.width": _width(1.0),
            **RULE_FIELDS,
            # As the published code has it for ResNets.
            "model.rho": Field(
                None,
                float,
                "a number in [0, 1], or None: the sparsity",
                lambda x: 0 <= x <= 1,
                optional=True,
            ),
        },
        rules=(NEEDS_TRAINED,),
    ),
}


def is_milestones(milestones: tuple[float, ...]) -> bool:
    """Whether all are finite, above 0, and each is later than the one before."""
    return all(
        math.isfinite(late) and early < late
        for early, late in zip((0.0, *milestones), milestones, strict=False)
    )


def is_step_range(steps: tuple[int, ...]) -> bool:
    """Whether these are two steps, the first before the last."""
    return len(steps) == 2 and 0 <= steps[0] < steps[1]


SHARED = {
    "seed": Field(0, int, "an integer in [0, 2**32)", lambda n: 0 <= n < 2**32),
    "num_seeds": integer(1, 1),  # trained at once: `seed`, `seed` + 1, ...
    "batch_size": integer(512, 1),  # over all devices
    "num_epochs": integer(160, 1),
    "num_steps": integer(None, 1),  # None: num_epochs times the steps of an epoch
    "dtype": choice("float32", "bfloat16"),
    "accumulate_steps": integer(1, 1),
    # A workdir, or one of its checkpoints: its weights are where this run starts.
    "init_from": Field("", str, "a workdir, one of its checkpoints, or nothing"),
    "profile_steps": Field(
        None, tuple, "(first, last) with first < last, or None", is_step_range, int, optional=True
    ),
    "dataset.name": choice("cifar10", "mnist", "digits", "synthetic", "imagenet2012"),
    "dataset.data_dir": Field("", str, "a folder, or nothing for the default of TFDS"),
    "dataset.image_size": Field(32, int, "an integer in [8, 4096]", lambda n: 8 <= n <= 4096),
    "dataset.num_channels": integer(3, 1),
    "dataset.num_classes": integer(10, 2),
    "dataset.crop_padding": integer(4, 0),  # 0: no random crop
    "dataset.flip": flag(True),
    # ImageNet only: a random part of each photograph; false: the central one, as in evaluation.
    "dataset.random_resized_crop": flag(True),
    "dataset.num_workers": integer(None, 0),  # processes that decode; None: one for each core
    "dataset.on_error": choice("raise", "skip"),  # what becomes of a damaged photograph
    "model.name": choice(*MODELS),
    "optimizer.learning_rate": at_least_0(0.1),
    "optimizer.momentum": fraction(0.9),
    "optimizer.weight_decay": at_least_0(1e-4),
    # Parameters whose path contains this are not decayed; nothing: all are.
    "optimizer.no_decay": Field("", str, 'a part of paths such as "bn", or nothing'),
    "optimizer.nesterov": flag(False),
    "schedule.name": choice("multistep", "cosine", "linear", "exponential", "constant"),
    # Multistep only. Below 1 a fraction of the run, else an epoch.
    "schedule.milestones": Field(
        (0.5, 0.75), tuple, "numbers > 0, each larger than the one before", is_milestones, float
    ),
    "schedule.factor": number(0.1, "in (0, 1]", lambda x: 0 < x <= 1),  # multistep, exponential
    "schedule.warmup_epochs": at_least_0(0.0),  # the rate rises linearly; then the schedule begins
    "schedule.per_epoch": flag(False),  # the rate changes at the start of an epoch only
    "loss.label_smoothing": fraction(0.0),
    "ema.decay": fraction(0.0),  # of the average of the parameters that is evaluated; 0: none
    "evaluate.every_steps": integer(0, 0),  # 0: at the end of each epoch
    "checkpoint.every_steps": integer(0, 0),  # 0: whenever it is evaluated
    "checkpoint.keep": integer(3, 1),
    "log.every_steps": integer(50, 1),
}

SHARED_RULES = (
    Rule(
        ("seed", "num_seeds"),
        "seed + num_seeds must be at most 2**32, which is no seed any more",
        lambda seed, num_seeds: seed + num_seeds <= 2**32,
    ),
    Rule(
        ("num_seeds", "dataset.name"),
        "num_seeds must be 1 where photographs are read while training: one run for each seed",
        lambda num_seeds, name: num_seeds == 1 or name != "imagenet2012",
    ),
    Rule(
        ("num_seeds", "checkpoint.keep"),
        "checkpoint.keep must be at least 2 with several seeds: they are saved one by one",
        lambda num_seeds, keep: num_seeds == 1 or keep > 1,
    ),
    Rule(
        ("batch_size", "accumulate_steps"),
        "batch_size must be a multiple of accumulate_steps",
        lambda batch_size, steps: batch_size % steps == 0,
    ),
    Rule(
        ("dataset.crop_padding", "dataset.image_size"),
        "crop_padding must be smaller than image_size, else a crop may show nothing",
        lambda padding, size: padding < size,
    ),
    Rule(
        ("schedule.warmup_epochs", "num_epochs", "num_steps"),
        "warmup_epochs must be smaller than num_epochs",
        lambda warmup, epochs, steps: steps is not None or warmup < epochs,
    ),
)


def fields_of(model_name: object) -> dict[str, Field]:
    """The fields of a run of this model; of an unknown one: those of all models.

    So an unknown model is one violation (its name), not one for each of its fields.
    """
    known = [model for name, model in MODELS.items() if name == model_name] or MODELS.values()
    return SHARED | {name: field for model in known for name, field in model.fields.items()}


def rules_of(model_name: object) -> tuple[Rule, ...]:
    """The rules over several fields of a run of this model."""
    known = [model for name, model in MODELS.items() if name == model_name]
    return SHARED_RULES + tuple(rule for model in known for rule in model.rules)
