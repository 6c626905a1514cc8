"""Calibration: a short probe on a pool's own hardware becomes factors of predicted time, in a file that plan reads."""
