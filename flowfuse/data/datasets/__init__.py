"""Data sets that come in a layout of their own, one folder each."""
