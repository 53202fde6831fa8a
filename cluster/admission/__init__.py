"""Who may run now, and where: room at a replica, queues at a gateway, choice of a replica. Pure; time is passed in."""
