"""The messages between the parts of sparktier: signals up, plans down, room to the gateways, decisions into the log."""
