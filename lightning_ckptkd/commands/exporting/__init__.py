"""The student as a file that other programs run: the call that is traced, a file for each format, the model card."""
