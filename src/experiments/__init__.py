"""What the scripts call: registry.py has a row for each experiment, and every other file is one of them."""
