"""What the scripts call: a row of registry.py has a file of its name; the other files serve several experiments."""
