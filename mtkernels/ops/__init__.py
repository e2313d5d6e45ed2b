"""The public functions, one file per family of ops."""
