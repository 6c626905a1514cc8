"""When the next checkpoint is due: every so many steps; sooner after one that could not be written."""


class Due:
    """Of one student rank. All of them are told the same, and so come to the same answer."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._is_due = self._is_asked = False
        self._failures = 0
        """In a row."""
        self._begun: int | None = None
        """After which step the last one began."""
        self._again: int | None = None
        """The step after which one that failed is tried again."""

    def after(self, done: int, held: bool, failed: bool) -> bool:
        """Whether to save now that so many steps are done; then it counts as begun.

        Args:
            held: put off by a step, for any rank still writes the one before: nobody waits for a slow disk.
            failed: the last one that ended was not written.
        """
        self._is_due |= done % self._every == 0
        if held:
            return False
        if self._is_asked:
            self._is_asked = False
            self._note_end(done, failed)
        if not self._is_due and (self._again is None or done < self._again):
            return False
        self._is_due, self._is_asked, self._again = False, True, None
        self._begun = done
        return True

    def takes_longer(self, done: int) -> bool:
        """Whether one that is still being written now has put off the next."""
        return self._begun is not None and done - self._begun >= self._every

    def _note_end(self, done: int, failed: bool) -> None:
        """A disk that is full for a moment costs a step or two; one that stays full is asked ever less."""
        self._failures = self._failures + 1 if failed else 0
        self._again = done + min(2**self._failures // 2 - 1, self._every) if failed else None
