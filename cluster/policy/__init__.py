"""The parts of the depth policy: what it knows of a replica, what the model says of it, and what it is to do."""
