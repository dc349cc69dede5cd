"""Asking a model behind a server: patient requests, and every answer on disk as it arrives."""
