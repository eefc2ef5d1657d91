"""experiments/torture: programs that try to break the scripts, and count what they broke."""
