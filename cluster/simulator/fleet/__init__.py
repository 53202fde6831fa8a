"""A cluster before there is one: gateways, queues, replicas and the controller's own policy, in virtual time."""
