"""The command line: arguments and help; each command's body is elsewhere."""
