"""The plan on one rank: what is in force, for how long, and what it says of a request's tier."""
