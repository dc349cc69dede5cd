"""Finding, checking and loading models, and keeping them in memory."""
