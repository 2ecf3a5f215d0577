"""Training a model under its new factors, on one process or on many; ``longrope.finetune(settings)`` does it."""

from longrope.callable_package import make_callable

make_callable(__name__, "longrope.finetune.run")
