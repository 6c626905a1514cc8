"""Runs on this machine: its cores and GPUs, the processes of a run, and who watches them."""
