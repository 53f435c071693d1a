"""Execution of compiled PTX without a GPU."""
