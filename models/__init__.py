"""Families of networks and how each is trained; `dnnlib/families.py` lists them."""
