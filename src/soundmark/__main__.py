"""``python -m soundmark`` is the command ``soundmark``."""

from soundmark.cli import main

if __name__ == "__main__":
    main()
