"""The values of the Helm chart, and the schema that Helm checks them by."""
