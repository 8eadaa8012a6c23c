"""The life of one command."""
