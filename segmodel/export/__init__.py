"""Results in formats that other programs open."""
