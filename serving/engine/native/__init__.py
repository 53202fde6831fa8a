"""SGLang's own DSpark chain under our plans."""
