"""Self-supervised learning: no labels at all. What is learned is the trunk, and frozen probes say how good it is."""
