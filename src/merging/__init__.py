"""Merging methods: the contract is in base.py, and every other file here is one method or one family."""
