"""The model's own chat template: ``rendering`` applies it and says how, ``checks`` judges what it wrote."""
