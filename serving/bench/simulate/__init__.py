"""The commands `simulate` and `plan`: a cluster in virtual time, from a file of settings and a trace."""
