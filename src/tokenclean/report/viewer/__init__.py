"""The token viewer: its page, its data, and the same view in a terminal."""
