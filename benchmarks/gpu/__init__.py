"""One GPU, a few minutes: ``python -m benchmarks.gpu OUT [--data FOLDER] [--minutes 8] [--device cuda|cpu]``.

What only a GPU can tell, in stages of their own budgets, what is worth most first; docs/gpu.md has the steps. One stage
a file: ``cuda_tests``, ``harvesting``, ``distilling``, ``selecting`` and ``paper``. ``runner`` gives each its time and
outlives what they do, ``worker`` is the process that they run in, ``lease`` is what a stage gets and writes to.
``packed``, ``device_images`` and ``student_stack`` are the parts of ``paper``; ``pack`` makes the file of images.
"""
