"""Graph in, C out: simplification, plan, kernels, emission."""
