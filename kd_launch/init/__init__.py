"""The first two files of a newcomer: cluster.yaml, as this machine or Slurm describes itself, and distill.yaml."""
