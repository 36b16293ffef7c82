"""What an exported folder holds as it is. Only `run.py` needs lichen; the rest runs without it."""
