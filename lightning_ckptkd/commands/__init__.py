"""What is run from a shell: the command line, its completion, the export of a student, the demo."""
