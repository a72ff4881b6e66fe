"""Planted faults and mutations."""
