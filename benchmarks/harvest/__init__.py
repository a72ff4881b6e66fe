"""What a harvest costs: ``python -m benchmarks.harvest``; a file for each thing that is measured."""
