"""What touches the machinery of Lightning and torch: ranks, strategies, sharding, optimisers, seeds."""
