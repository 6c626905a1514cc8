"""What the caretaker of an attempt says, into the log of the batch script."""

import sys


def say(words: str) -> None:
    sys.stderr.write(f"kd-launch: {words}\n")
    sys.stderr.flush()
