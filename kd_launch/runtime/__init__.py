"""Everything inside the job: the only place that imports torch, transformers and datasets."""
