"""Facts of running requests, one entry per request slot of SGLang's pool, on the device."""
