"""SGLang on GPUs: tree attention through FlashInfer."""
