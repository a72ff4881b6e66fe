"""``python -m benchmarks.selection``."""

from benchmarks.selection.ranking import main

if __name__ == "__main__":
    main()
