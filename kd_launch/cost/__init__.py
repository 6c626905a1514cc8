"""The cost model: bytes and seconds of a teacher, a student and what passes between them. Small pure functions."""
