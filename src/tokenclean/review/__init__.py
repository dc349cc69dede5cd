"""Decisions of people on tokens: in a file, on the rows of a pool, compared with each other and with scores.

Decisions are about characters of a message, not about tokens, so they hold for another tokenizer, template or model.
"""
