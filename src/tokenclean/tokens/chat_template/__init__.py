"""The model's own chat template, applied and checked.

``rendering`` states the rules and runs the steps: ``messages`` applies the template to a conversation, ``text_marks``
puts a mark in place of each text and matches the two renderings, ``frames`` caches what conversations of one shape
share, with what the template writes around an answer, ``checks`` refuses a template that loses something, and
``locate`` gives the spans of the targets.
"""
