"""The model's own chat template, applied and checked: the text that it writes, with every text in it accounted for.

A template is a program whose output says nothing about where a turn begins or ends. So the conversation is rendered
once more with a mark in place of each text (``marks``), and that skeleton filled with the texts must be exactly
the real rendering. Nothing is searched for in the real text, which may hold the template's own tags.
Conversations of one shape share their skeleton (``frames``): most rows of a pool cost one rendering.

The rules (docs/reference/templates.md explains them):

- A text that the template leaves out, or writes twice, refuses the row: of any role, and of tools and arguments too
  (``checks``).
- A thought may be left out if a later question or answer follows, as it is at inference. It is reported.
- An answer may lose the blanks around it and nothing else. A turn of another role that is rewritten (escaped,
  shortened) is noted (``locate``).
- What belongs to an answer beside its texts: see ``frames``.

``messages`` applies the template to a conversation.
"""
