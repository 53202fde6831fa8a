"""Everything that touches SGLang: platform, plugin, models, hooks. The only folder that imports it."""
