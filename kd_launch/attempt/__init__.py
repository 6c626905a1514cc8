"""One attempt of a run on Slurm, seen from its batch script: it is watched, and what follows it is decided."""
