"""Data: recordings read from disk, and scenes generated with exact truth."""
