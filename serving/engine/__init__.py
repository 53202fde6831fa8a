"""Everything that touches SGLang: platform, plugin, models, hooks. The only folder that imports it.

Knows nothing of HTTP fronts, tiers as users see them, or the command line.
"""
