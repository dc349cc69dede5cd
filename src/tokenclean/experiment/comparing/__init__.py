"""Strategies and settings against each other."""
