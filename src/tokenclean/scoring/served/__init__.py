"""Losses under a model behind a server: how it is asked, what is checked, and how another tokenizer's are brought onto
our tokens."""
