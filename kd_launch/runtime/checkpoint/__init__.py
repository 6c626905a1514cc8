"""Checkpoints of the student: written beside the training, whole or not at all; found, verified and read again."""
