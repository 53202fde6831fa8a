"""The operators' console: promises, replicas, decisions, requests in trouble and the canary on one page."""
