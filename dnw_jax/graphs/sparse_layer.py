"""Layers with a weight for every possible edge, and a rule that makes some of the edges real."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import RULES, Rule, State, edge_budget, find_rule
from dnw_jax.edges.budget import Sparsity
from dnw_jax.edges.rule import checked_state


class RuleState(nnx.Variable):
    """The state of a rule, such as the mask of a random graph: saved, never trained."""


class SparseLayer(nnx.Module):
    """The base class of all layers that choose edges.

    Attributes:
      rule: chooses the real edges, and which of them learn.
      sparsity: fraction of the edges that is not real.
      num_edges: number of real edges, the budget.
      state: the rule's state, or None.
    """

    rule: Rule
    sparsity: Sparsity
    num_edges: int
    state: RuleState | None
    kernel: nnx.Param

    @property
    def weights(self) -> Float[Array, "*shape"]:
        """The weights of all possible edges; targets lie along the last axis."""
        return self.kernel[...]

    def real_edges(self) -> Bool[Array, "*shape"]:
        """Returns the mask of the edges that are real now."""
        return self.rule.mask(self.weights, self._rule_state(), self.num_edges)

    def real_weights(
        self, *, train: bool = False, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*shape"]:
        """Returns the weights that carry signal now; they are chosen in full precision.

        Args:
          train: whether this is a forward pass of training.
          key: needed in training if the rule draws random numbers.
        """
        return self.rule(self.weights, self._rule_state(), self.num_edges, train=train, key=key)

    def freeze_edges(self) -> None:
        """Sets the weights of all edges that are not real to zero, and chooses no more edges."""
        self._set_weights(self.real_weights())
        self.rule = RULES["complete"]
        self._set_rule_state(None)

    def advance(self, progress: Float[Array, ""]) -> None:
        """Advances the rule's state to the update at `progress`, in (0, 1], of the run."""
        state = self._rule_state()
        self._set_rule_state(self.rule.advance_state(self.weights, state, self.num_edges, progress))

    def adopt(self) -> None:
        """Updates the rule's state after the weights were replaced by those of another run."""
        state = self._rule_state()
        self._set_rule_state(self.rule.adopt_weights(self.weights, state, self.num_edges))

    def penalty(self) -> Float[Array, ""] | float:
        """Returns the term that the rule adds to the loss."""
        return self.rule.penalty(self.weights)

    def _init_rule(
        self,
        rule: Rule,
        sparsity: Sparsity,
        key: Key[Array, ""] | None,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> None:
        """Sets all attributes of this class but the weights, which must exist."""
        if problem := rule.refuses("", self.weights.shape):
            raise ValueError(f"{rule} does not fit: {problem}")
        self.rule = rule
        self.sparsity = sparsity
        self.num_edges = edge_budget(self.weights.size, sparsity)
        self._set_rule_state(rule.init(key, self.weights, self.num_edges, forbidden))

    def _init_user_rule(self, name: str | Rule, sparsity: Sparsity | None, rngs: nnx.Rngs) -> None:
        """Calls `_init_rule` with a rule by name, a checked sparsity, and a key only if needed."""
        rule = find_rule(name)
        # Take a key only if the rule draws one: then the next layers that are built from `rngs` get
        # the weights that Flax's layers would get.
        key = None
        if rule.draws_wiring:
            key = rngs.edges() if {"edges", "default"} & set(rngs) else rngs.params()
        self._init_rule(rule, rule.checked_sparsity(sparsity), key)

    def _with_real_weights(self, train: bool, key: Key[Array, ""] | None) -> Any:
        """Returns a stand-in for this layer whose kernel holds the weights that carry signal.

        It has all attributes of the layer, and the `__call__` of Flax's layers reads nothing else.
        A copy of the module would not do: it keeps the trace level at which the module was built.
        If a function under `jax.jit` captures the module, Flax then refuses to replace the kernel.
        """
        kernel = nnx.Param(self.real_weights(train=train, key=key))
        return SimpleNamespace(**(vars(self) | {"kernel": kernel}))

    def _set_weights(self, weights: Float[Array, "*shape"]) -> None:
        self.kernel = nnx.Param(weights)

    def _rule_state(self) -> State:
        return None if self.state is None else self.state[...]

    def _set_rule_state(self, state: Any) -> None:
        state = checked_state(self.rule, state)
        # A new variable: the assignment to an existing one differs between Flax 0.11 and 0.12.
        self.state = None if state is None else RuleState(state)


class SparseLinear(SparseLayer, nnx.Linear):
    """`flax.nnx.Linear` with a sparse kernel [inputs, outputs].

    A seed gives the same weights as in Flax's layer. The bias, if the layer has one, is dense. To
    use the rule `fine_tune` or `lottery_ticket`, put trained weights into `kernel`, then call
    `adopt`.

    Args:
      in_features: number of inputs.
      out_features: number of outputs.
      sparsity: fraction of the kernel that is zero in the forward pass, in [0, 1]. Only n:m
        accepts None.
      rule: a name in `dnw_jax.edges.RULES`, "n:m" such as "2:4", or a `Rule`.
      rngs: the stream "params" initialises the weights; a random wiring is drawn from "edges" or
        "default" if there is one, otherwise from "params".
      options: any other argument of `flax.nnx.Linear`.

    Raises:
      ValueError: the rule is unknown or does not fit the kernel, or the sparsity is outside [0, 1].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        sparsity: Sparsity | None = None,
        rule: str | Rule = "dnw",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(in_features, out_features, rngs=rngs, **options)
        self._init_user_rule(rule, sparsity, rngs)

    def __call__(  # type: ignore[override]
        self,
        inputs: Float[Array, "*batch inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch outputs"]:
        """Applies the linear map of the real weights; `key` as in `real_weights`."""
        return nnx.Linear.__call__(self._with_real_weights(train, key), inputs)


class SparseConv(SparseLayer, nnx.Conv):
    """`flax.nnx.Conv` with a sparse kernel [*window, inputs, outputs].

    A seed gives the same weights as in Flax's layer. The bias, if the layer has one, is dense. To
    use the rule `fine_tune` or `lottery_ticket`, put trained weights into `kernel`, then call
    `adopt`.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size: size of the window, such as (3, 3).
      sparsity: fraction of the kernel that is zero in the forward pass, in [0, 1]. Only n:m
        accepts None.
      rule: a name in `dnw_jax.edges.RULES`, "n:m" such as "2:4", or a `Rule`.
      rngs: the stream "params" initialises the weights; a random wiring is drawn from "edges" or
        "default" if there is one, otherwise from "params".
      options: any other argument of `flax.nnx.Conv` but `mask`.

    Raises:
      ValueError: the rule is unknown or does not fit the kernel, or the sparsity is outside [0, 1].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        sparsity: Sparsity | None = None,
        rule: str | Rule = "dnw",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if options.get("mask") is not None:
            raise ValueError(
                "mask is given; the rule of a SparseConv chooses the mask: leave it out"
            )
        super().__init__(in_features, out_features, kernel_size, rngs=rngs, **options)
        self._init_user_rule(rule, sparsity, rngs)

    def __call__(  # type: ignore[override]
        self,
        inputs: Float[Array, "*batch_and_size inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch_and_out_size outputs"]:
        """Applies the convolution with the real weights; `key` as in `real_weights`."""
        return nnx.Conv.__call__(self._with_real_weights(train, key), inputs)
