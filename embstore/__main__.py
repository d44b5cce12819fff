"""``python -m embstore``: the command line."""

from embstore.cli import main

if __name__ == "__main__":
    main()
