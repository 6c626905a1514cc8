"""Slurm: its programs are asked, their text becomes values, and a script is sent."""
