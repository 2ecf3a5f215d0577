"""The search for rescale factors: its space, algorithms and objective; ``longrope.search(settings)`` runs it."""

from longrope.callable_package import make_callable

make_callable(__name__, "longrope.search.search")
