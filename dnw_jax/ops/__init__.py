"""Pure functions on arrays, without Flax: convolutions, norms, products along edges, ODE solves."""
