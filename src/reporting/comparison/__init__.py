"""Methods of several papers beside each other."""
