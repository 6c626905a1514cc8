"""Runs that were started: which one, in what state, what they wrote, and how to end them."""
