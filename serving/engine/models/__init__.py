"""Model classes that SGLang loads beside its own or instead of them (`SGLANG_EXTERNAL_MODEL_PACKAGE`)."""
