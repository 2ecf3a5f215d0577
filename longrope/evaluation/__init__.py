"""Measuring models under a policy: suites of items, each scored once in the life of a run."""
