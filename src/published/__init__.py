"""Readers and converters of other projects' files."""
