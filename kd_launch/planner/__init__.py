"""The planner: every layout of two models on a cluster, the best of them, and why."""
