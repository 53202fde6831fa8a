"""From settings to what is started: SGLang's arguments, model folders, and plans for machines elsewhere."""
