"""Training a model under its new factors, on one process or on many."""
