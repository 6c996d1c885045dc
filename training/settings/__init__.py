"""Every setting of a run; imports no torch."""
