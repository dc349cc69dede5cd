"""Plots in one style, with their data as CSV."""
