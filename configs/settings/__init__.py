"""The settings of a deployment: one frozen pydantic model a section of the YAML file."""
