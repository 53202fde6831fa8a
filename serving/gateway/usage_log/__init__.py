"""The log of use: a record of each request before it is sent and before its last byte leaves, settled after a crash."""
