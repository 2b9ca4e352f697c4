"""Plumbing: places, files, results, processes, loggers. Nobody who reads a paper has to open it."""
