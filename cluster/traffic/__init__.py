"""Offered load: requests with their times and lengths, drawn from a rate or read from a trace, and who sends each."""
