"""The model's own chat template, applied and checked.

``rendering`` states the rules and runs the steps: ``messages`` applies the template to a conversation (``date`` fixes
its clock), ``marks`` puts a mark in place of each text, ``skeleton`` matches the two renderings, ``checks`` refuses a
template that loses something, ``answer_edges`` finds what it writes around an answer, ``frames`` caches what
conversations share, and ``locate`` gives the spans of the targets.
"""
