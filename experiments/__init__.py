"""Scripts of experiments. `results/` holds the numbers that they printed."""
