"""What teachers cost a student, beside other ways to distil."""
