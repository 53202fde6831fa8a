"""What a verify pass reads and leaves: tables of attention before it, what is committed after it."""
