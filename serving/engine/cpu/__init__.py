"""SGLang on plain CPUs: platform, attention, linear layers, experts."""
