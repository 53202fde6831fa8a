"""SGLang's own DSPARK chain with our statistics, and its planner without a confidence head."""
