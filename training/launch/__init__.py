"""From options to running processes."""
