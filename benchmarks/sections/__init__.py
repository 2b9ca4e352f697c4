"""Sections of the program `accelerator`."""

import time

BEGAN = time.time()  # of the program, which imports this before what takes seconds
