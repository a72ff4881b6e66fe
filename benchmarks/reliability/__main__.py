"""``python -m benchmarks.reliability``."""

from benchmarks.reliability.experiments import main

if __name__ == "__main__":
    main()
