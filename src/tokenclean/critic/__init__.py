"""The critic: a language model reads the numbered sentences of a row twice, and what it names both times is masked.

After SRFT (arXiv 2605.10674) and PRISM (arXiv 2604.01682): a masked sentence has weight 0 and stays in the text.
"""
