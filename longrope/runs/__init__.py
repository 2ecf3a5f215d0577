"""What every kind of run has: a journal or a lock in its folder, progress, and a record of versions."""
