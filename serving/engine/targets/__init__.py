"""Which targets each method of speculation can serve losslessly: one table, and the facts it reads."""
