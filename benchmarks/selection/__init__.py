"""What a selection costs, and how good its estimates are."""
