"""The cost model on one model and one layout, no search: what a training step or a forward pass takes and needs."""
