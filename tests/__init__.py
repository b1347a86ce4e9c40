"""A package, so that `python -m tests.support...` finds these tests and not a package of that name elsewhere."""
