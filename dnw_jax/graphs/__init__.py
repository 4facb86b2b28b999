"""Node dynamics: what nodes do, and how signal goes round in static and timed graphs."""
