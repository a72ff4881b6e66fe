"""``python -m benchmarks.students``."""

from benchmarks.students.training import main

if __name__ == "__main__":
    main()
