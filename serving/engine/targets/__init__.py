"""Which targets each method of speculation serves losslessly: the table, and the facts that it reads."""
