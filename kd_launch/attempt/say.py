"""What the caretaker of an attempt says, into the log of the batch script."""

import sys
from contextlib import suppress


def say(words: str) -> None:
    """On a full disk it waits for the next words that find room: nothing that was decided is lost for it."""
    with suppress(OSError):
        sys.stderr.write(f"kd-launch: {words}\n")
        sys.stderr.flush()
