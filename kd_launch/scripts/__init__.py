"""A plan becomes the text of a script."""
