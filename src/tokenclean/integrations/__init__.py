"""tokenclean inside other tools: weighted trainers for TRL and transformers, and steps for data pipelines.

One module a tool, which loads that tool: ``trl``, ``transformers``, ``datatrove``, ``data_juicer``.
"""
