"""The command line: what each command asks, and how its answer looks."""
