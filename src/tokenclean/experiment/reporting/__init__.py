"""The sections of a report of finished runs."""
