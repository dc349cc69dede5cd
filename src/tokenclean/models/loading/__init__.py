"""Models as they come in: found, checked, loaded, kept in memory."""
