"""What a choice of teachers is worth: studies on real data."""
