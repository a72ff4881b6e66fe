"""``python -m benchmarks.distillation``."""

from benchmarks.distillation.costs import main

if __name__ == "__main__":
    main()
