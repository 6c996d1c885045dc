"""What dataset_tool.py is made of; imports no torch."""
