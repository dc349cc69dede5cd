"""Questions to a language model about rows: what asking will cost, a server or a local model, answers kept on disk."""
