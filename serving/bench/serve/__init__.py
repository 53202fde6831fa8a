"""`sparktier bench serve`: open-loop load against a deployment, and what each tier got of its promise."""
