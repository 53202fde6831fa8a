"""Model classes that SGLang loads in place of, or beside, its own (`SGLANG_EXTERNAL_MODEL_PACKAGE`)."""
