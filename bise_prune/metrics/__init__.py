"""Figures of a classifier: accuracy per subgroup, fairness, parameters, FLOPs and latency."""
