"""Merging methods: base.py has the contract, a file with `@register` a method or a family; the others serve several."""
