"""``python -m longrope`` is the ``longrope`` command."""

from longrope.cli.main import main

if __name__ == "__main__":
    main()
