"""What a batch, an output and a target are: the one place that says it, which every other room asks."""
