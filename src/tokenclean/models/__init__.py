"""The only room that calls a transformer."""
