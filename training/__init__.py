"""One training run, read from the top: the loop, its stages and losses, and the seam for models."""
